#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <thread>

#include "tests/component/envd/envd_fixture.h"

namespace e2bfs::transport::envd {
namespace {

class EnvdProcess : public EnvdProtocolTest {
 protected:
  static RunRequest Shell(const std::string& script) {
    RunRequest request;
    request.process.command = "/bin/sh";
    request.process.arguments = {"-c", script};
    return request;
  }
};
INSTANTIATE_TEST_SUITE_P(Both, EnvdProcess, testing::Bool(), EnvdProtocolName);

TEST_P(EnvdProcess, RunGivesStatusAndOutput) {
  EnvdTestBench bench(GetParam());
  RunRequest request = Shell(R"(printf 'a\000b\377'; printf err >&2; exit 3)");
  auto result = bench.client().Run(request, Ctx());
  ASSERT_TRUE(result) << ToString(result.error());
  EXPECT_EQ(result->out, std::string("a\0b\xff", 4));
  EXPECT_EQ(result->err, "err");
  EXPECT_EQ(result->end.exit_code, 3);
  EXPECT_TRUE(result->end.exited);
  EXPECT_FALSE(result->Succeeded());

  request = Shell(R"(printf '%s|' "$X" "$PWD" "$1")");
  request.process.arguments.insert(request.process.arguments.end(), {"sh", "odd \"'$`\n\\ argument"});
  request.process.environment["X"] = "value=1";
  request.process.working_directory = bench.root();
  result = bench.client().Run(request, Ctx());
  ASSERT_TRUE(result) << ToString(result.error());
  EXPECT_EQ(result->out, "value=1|" + bench.root() + "|odd \"'$`\n\\ argument|");
  EXPECT_TRUE(result->Succeeded());

  request.process.working_directory = bench.Path("nope");
  result = bench.client().Run(request, Ctx());
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().errno_value, ENOENT) << ToString(result.error());

  result = bench.client().Run(Shell("kill -9 $$"), Ctx());
  ASSERT_TRUE(result);
  EXPECT_FALSE(result->end.exited);
  EXPECT_EQ(result->end.exit_code, -1);
}

TEST_P(EnvdProcess, RunFeedsInput) {
  EnvdTestBench bench(GetParam());
  for (const size_t size : {size_t{0}, size_t{5}, size_t{32} << 10, size_t{1} << 20}) {
    RunRequest request = Shell("cat");
    std::string input(size, '\0');
    for (size_t i = 0; i < size; ++i) input[i] = static_cast<char>(i * 31 >> 3);
    request.stdin_bytes = input;
    auto result = bench.client().Run(request, Ctx());
    ASSERT_TRUE(result) << size << " " << ToString(result.error());
    EXPECT_TRUE(result->out == input) << size << " bytes came back as " << result->out.size();
    EXPECT_TRUE(result->Succeeded());
  }
  // A process that does not want it is not an error.
  RunRequest request = Shell("exit 7");
  request.stdin_bytes = std::string(size_t{1} << 20, 'x');
  auto result = bench.client().Run(request, Ctx());
  ASSERT_TRUE(result) << ToString(result.error());
  EXPECT_EQ(result->end.exit_code, 7);
}

TEST_P(EnvdProcess, OutputIsBounded) {
  EnvdTestBench bench(GetParam());
  RunRequest request = Shell("head -c 300000 /dev/zero; head -c 5000 /dev/zero >&2");
  request.max_stdout_bytes = 300'000;
  request.max_stderr_bytes = 100;
  auto result = bench.client().Run(request, Ctx());
  ASSERT_TRUE(result) << ToString(result.error());
  EXPECT_EQ(result->out.size(), 300'000U);
  EXPECT_EQ(result->err.size(), 100U);
  request.max_stdout_bytes = 299'999;
  result = bench.client().Run(request, Ctx());
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().errno_value, EFBIG);
}

TEST_P(EnvdProcess, ADeadlineKillsIt) {
  EnvdTestBench bench(GetParam());
  auto result = bench.client().Run(Shell("sleep 600"), OpContext::Within(std::chrono::milliseconds(700)));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().errno_value, ETIMEDOUT) << ToString(result.error());
}

TEST_P(EnvdProcess, AStopRequestKillsIt) {
  EnvdTestBench bench(GetParam());
  std::stop_source stop;
  OpContext ctx = Ctx();
  ctx.stop = stop.get_token();
  std::thread canceller([&] {
    // Once it runs, which the file shows.
    for (const TimePoint until = Clock::now() + std::chrono::seconds(60); bench.Read("started").empty() && Clock::now() < until;) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    stop.request_stop();
  });
  // It begins with its input, which Run gives it when it knows the pid.
  RunRequest request = Shell("read go; echo yes > started; exec sleep 600");
  request.stdin_bytes = "go\n";
  request.process.working_directory = bench.root();
  auto result = bench.client().Run(request, ctx);
  canceller.join();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().errno_value, EINTR) << ToString(result.error());
  EXPECT_EQ(bench.Requests("POST /process.Process/SendSignal"), 1);
}

TEST_P(EnvdProcess, StreamsInBothDirections) {
  EnvdTestBench bench(GetParam());
  StartRequest start;
  start.process.command = "/bin/cat";
  start.stdin_open = true;
  start.tag = "echo";
  auto output = bench.client().StartProcess(start, Ctx());
  ASSERT_TRUE(output) << ToString(output.error());
  auto event = (*output)->Next(Ctx());
  ASSERT_TRUE(event && *event);
  ASSERT_EQ((*event)->kind, ProcessEvent::Kind::kStart);
  const ProcessSelector process{(*event)->pid, ""};

  auto listed = bench.client().ListProcesses(Ctx());
  ASSERT_TRUE(listed) << ToString(listed.error());
  EXPECT_TRUE(std::any_of(listed->begin(), listed->end(), [&](const ProcessInfo& info) { return info.pid == process.pid; }));

  auto input = bench.client().StreamInput(process, Ctx());
  ASSERT_TRUE(input) << ToString(input.error());
  const auto read_exactly = [&](size_t size) {
    std::string bytes;
    while (bytes.size() < size) {
      auto more = (*output)->Next(Ctx());
      if (!more || !*more || (*more)->kind != ProcessEvent::Kind::kStdout) break;
      bytes += (*more)->data;
    }
    return bytes;
  };
  // Each piece is echoed while the request is still open.
  for (const std::string& piece : {std::string("one"), std::string("\0\xff", 2), std::string(100'000, 'z')}) {
    ASSERT_TRUE((*input)->Write(piece, Ctx()));
    EXPECT_TRUE(read_exactly(piece.size()) == piece);
    ASSERT_TRUE((*input)->KeepAlive(Ctx()));
  }
  auto finished = (*input)->Finish(Ctx());
  EXPECT_TRUE(finished) << ToString(finished.error());
  ASSERT_TRUE(bench.client().SendInput(process, "two", Ctx()));
  EXPECT_EQ(read_exactly(3), "two");

  auto second = bench.client().ConnectProcess(process, Ctx());
  ASSERT_TRUE(second) << ToString(second.error());
  auto connected = (*second)->Next(Ctx());
  ASSERT_TRUE(connected && *connected);
  EXPECT_EQ((*connected)->pid, process.pid);

  ASSERT_TRUE(bench.client().CloseStdin(process, Ctx()));
  for (ProcessStream* stream : {output->get(), second->get()}) {
    auto end = stream->Next(Ctx());
    ASSERT_TRUE(end && *end);
    EXPECT_EQ((*end)->kind, ProcessEvent::Kind::kEnd);
    EXPECT_TRUE((*end)->end.exited);
    auto nothing = stream->Next(Ctx());
    ASSERT_TRUE(nothing) << ToString(nothing.error());
    EXPECT_FALSE(*nothing);
  }
  EXPECT_EQ(bench.client().SendInput(process, "x", Ctx()).error().errno_value, ENOENT);
}

TEST_P(EnvdProcess, SignalsAndOldEnvd) {
  EnvdTestBench bench(GetParam());
  StartRequest start;
  start.process.command = "/bin/sleep";
  start.process.arguments = {"600"};
  auto output = bench.client().StartProcess(start, Ctx());
  ASSERT_TRUE(output);
  auto event = (*output)->Next(Ctx());
  ASSERT_TRUE(event && *event);
  ASSERT_TRUE(bench.client().SendSignal({(*event)->pid, ""}, SIGKILL, Ctx()));
  auto end = (*output)->Next(Ctx());
  ASSERT_TRUE(end && *end);
  EXPECT_FALSE((*end)->end.exited);
  EXPECT_EQ(bench.client().SendSignal({(*event)->pid, ""}, SIGUSR1, Ctx()).error().errno_value, EINVAL);

  EnvdTestOptions options;
  options.version = "0.2.11";
  EnvdTestBench old(GetParam(), options);
  RunRequest request = Shell("echo old");
  auto result = old.client().Run(request, Ctx());
  ASSERT_TRUE(result) << ToString(result.error());
  EXPECT_EQ(result->out, "old\n");
  request.stdin_bytes = "x";
  EXPECT_EQ(old.client().Run(request, Ctx()).error().errno_value, ENOTSUP);
}

TEST_P(EnvdProcess, AListOfProcessesIsBounded) {
  EnvdTestBench bench(GetParam());
  sandbox::Fault fault;
  fault.match = "Process/List";
  fault.action = "replace_body";
  fault.body = R"({"processes":[],"more":[)" + std::string(4 << 20, ' ') + "]}";
  bench.server().AddFault(fault);
  auto list = bench.client().ListProcesses(Ctx());
  ASSERT_FALSE(list);
  EXPECT_EQ(list.error().errno_value, EFBIG) << ToString(list.error());
}

// A change is not done twice: the process was started, its answer torn.
TEST_P(EnvdProcess, AStartedProcessIsNotStartedAgain) {
  EnvdTestBench bench(GetParam());
  sandbox::Fault fault;
  fault.match = "Process/Start";
  fault.action = "reset";
  fault.at_byte = 10;
  bench.server().AddFault(fault);
  RunRequest request = Shell("echo x >> count; echo done");
  request.process.working_directory = bench.root();
  auto result = bench.client().Run(request, Ctx());
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind, ErrorKind::kBroken) << ToString(result.error());
  EXPECT_EQ(bench.Requests("POST /process.Process/Start"), 1);
  // The same for what may be repeated: it is.
  bench.server().AddFault(fault);
  request.repeat = Repeat::kIdempotent;
  result = bench.client().Run(request, Ctx());
  ASSERT_TRUE(result) << ToString(result.error());
  EXPECT_EQ(result->out, "done\n");
  EXPECT_EQ(bench.Requests("POST /process.Process/Start"), 3);
}

// A stream that stops without its end-of-stream message is not a success, however properly HTTP ends it.
TEST_P(EnvdProcess, ATornStreamIsNoEnd) {
  EnvdTestBench bench(GetParam());
  sandbox::Fault fault;
  fault.match = "Process/Start";
  fault.action = "cut";
  fault.at_byte = 60;
  bench.server().AddFault(fault);
  auto result = bench.client().Run(Shell("echo hello"), Ctx());
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().errno_value, EIO);
}

}  // namespace
}  // namespace e2bfs::transport::envd
