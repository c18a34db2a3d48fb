// The commands, environment variables and exit statuses as tables: help, parsing and the manual page are made from them.
#include "fuse/cli_tables.h"

#include "fuse/commands.h"

namespace e2bfs::fuse {
namespace {

constexpr size_t kAnyNumber = 100'000;

}  // namespace

const std::vector<CommandSpec>& Commands() {
  static const std::vector<CommandSpec> commands = {
      {"mount", "SANDBOX[:PATH] DIRECTORY [-o OPTION[,OPTION...]] [-f] [-d]", "Mounts a running sandbox's files on a directory.",
       "SANDBOX is the sandbox's id. PATH is the directory of it that is shown: absolute, or below the home of the sandbox's user, which "
       "is the default. DIRECTORY has to exist.\n\n"
       "The API key comes from E2B_API_KEY, or from the login of the E2B CLI (~/.e2b/config.json). A paused sandbox is resumed, and then "
       "lives for 300 seconds unless -o timeout= says how long; -o keep_alive goes on extending that. A running sandbox's time to live is not touched "
       "unless -o timeout= asks for it, and never shortened.\n\n"
       "e2bfs goes into the background and the command returns when the mount answers. If it cannot be made, the reason is printed and the "
       "exit status is not 0. SIGTERM and SIGINT make it send what is unsent, unmount and end.",
       {{"--option", 'o', "OPTION[,OPTION...]", "Mount options, see below. May be given several times."},
        {"--foreground", 'f', "", "Stay in the foreground and log to stderr."},
        {"--debug", 'd', "", "Log every operation, and each message of the kernel: log_level=debug, and libfuse's own trace."}},
       2, 2, true, MountCommand},
      {"umount", "DIRECTORY [--timeout TIME] [--force]", "Sends what is unsent, then unmounts.",
       "Waits until the sandbox has everything that was written, with progress on a terminal. If something cannot be sent, nothing is "
       "unmounted, and the exit status is 8: try again, or use --force. A mount that is in use (an open file, a working directory) stays, too.\n\n"
       "fusermount3 -u and umount work as well; then what is unsent is sent in the background after they returned.",
       {{"--timeout", 't', "TIME", "How long sending may take in all: seconds, or with a unit (90s, 5m). Default: as long as it gets on, and 10m (with --force 15s) without."},
        {"--force", '\0', "", "Unmount in any case, also when in use. What could not be sent is put aside in the state directory; where, is printed."}},
       1, 1, false, UmountCommand},
      {"flush", "DIRECTORY [--timeout TIME]", "Sends what is unsent, and waits for it.",
       "When it returns with exit status 0 the sandbox has everything that was written through the mount before. With -o writeback that is what a program in the sandbox waits for; otherwise "
       "close(2) has done it, but for files that are still open, or that failed. If something cannot be sent, what and why is said, and the exit status is 8.",
       {{"--timeout", 't', "TIME", "How long sending may take in all: seconds, or with a unit (90s, 5m). Default: as long as it gets on, and 10m without."}},
       1, 1, false, FlushCommand},
      {"list", "[--json] [--mounts]", "Lists the sandboxes that can be mounted, and what is mounted where.",
       "Sandboxes: id, template, state, time left, metadata. If the control plane cannot be asked, that is said on stderr, the mounts are "
       "listed all the same, and the exit status is not 0.",
       {{"--json", '\0', "", "For programs: one JSON object."},
        {"--mounts", '\0', "", "Only what is mounted here. Asks nobody, and needs no key."}},
       0, 0, false, ListCommand},
      {"status", "DIRECTORY [--json]", "Shows how a mount is doing.",
       "Which sandbox, its envd's version and what it can do, the tier and protocol in use, requests, bytes, cache hits, data that is not sent "
       "yet, and the last error.",
       {{"--json", '\0', "", "For programs: one JSON object."}},
       1, 1, false, StatusCommand},
      {"cache", "[DIRECTORY] [--clear] [--json]", "Shows or clears the content that mounts keep on this machine's disk.",
       "DIRECTORY is that of -o cache=, by default the default one. Mounts that use it go on, also while it is cleared: what they need "
       "comes from the sandbox again.",
       {{"--clear", '\0', "", "Remove what is in it."}, {"--json", '\0', "", "For programs: one JSON object."}},
       0, 1, false, CacheCommand},
      {"recover", "[ID...] [--send [--to SANDBOX] | --export DIR | --drop] [--all] [--yes] [-o OPTION[,OPTION...]] [--json]",
       "Lists, sends, exports or drops what earlier mounts could not send.",
       "When a sandbox goes away, refuses what was written, or a mount is killed, what was not sent stays on this machine. Without an option it is listed: "
       "id, sandbox, kind, size, since when, name, and why it was not sent. IDs choose some of it. A living mount's data is not listed: it sends that itself. What -o writeback accepted "
       "the next mount of the same sandbox, user and directory sends by itself, unless it is read-only; it is listed until then.\n\n"
       "--send compares each file in the sandbox with what the change was made to (identity, time of modification, size). If it is the same, the change goes onto it as the mount would "
       "have done it. A file that is gone is made again if all of its content is here. If it was changed meanwhile, or replaced, or may not be written, it stays as it is, and what was "
       "written lies beside it as NAME.e2bfs-conflict-DATE-TIME-ID (UTC, of the first write that was not sent), which is said, and the exit status is 10. Directories are made before what goes into "
       "them, also if that alone is chosen, and leave the list after all of it. What was sent leaves the list; what could not be sent stays in it, and the exit status is 8.\n\n"
       "-o takes the options of mount: how the sandbox is reached (user=, tier=, protocol= and so on), and spool_dir= of mounts that had one. A paused sandbox is resumed, as by mount.",
       {{"--send", 's', "", "Send it to the sandbox that it was written to."},
        {"--to", '\0', "SANDBOX", "With --send: to this sandbox instead, such as one that was restored from a snapshot."},
        {"--export", 'e', "DIR", "Copy it below DIR, with the sandbox's directories, and a text file that says which parts of each file were written. No file that is there is touched."},
        {"--drop", '\0', "", "Remove it from this machine for good. Needs IDs or --all, and asks first."},
        {"--all", 'a', "", "All of it, as without IDs; --drop needs it said."},
        {"--yes", 'y', "", "With --drop: do not ask."},
        {"--option", 'o', "OPTION[,OPTION...]", "Options of mount, see above. May be given several times."},
        {"--json", '\0', "", "For programs: one JSON object. path_bytes has names as percent-encoded bytes."}},
       0, kAnyNumber, false, RecoverCommand},
      {"demo", "[--seconds N]", "Tries everything here: a local test sandbox, mounted.",
       "Needs no account. Starts e2bfs-test-sandbox on the loopback interface with a scratch directory, mounts it, and shows a file being listed, "
       "read, written and seen changed on the other side. From a terminal it stays up until Ctrl-C. It leaves nothing behind.",
       {{"--seconds", '\0', "N", "Stay up for so long, terminal or not. Default: until Ctrl-C on a terminal, otherwise not at all."}},
       0, 0, false, DemoCommand},
  };
  return commands;
}

const std::vector<TableLine>& EnvironmentTable() {
  static const std::vector<TableLine> lines = {
      {"E2B_API_KEY", "The API key. Otherwise the login in ~/.e2b/config.json, or the systemd credential e2b_api_key."},
      {"E2B_DOMAIN", "The platform's domain. Default: e2b.app."},
      {"E2B_API_URL", "Base URL of the control plane. Default: https://api.<domain>."},
      {"E2B_SANDBOX_URL", "Base URL of the sandboxes' envd, in place of the one made of domain and id."},
      {"E2B_DEBUG", "true: no control plane and no key; one sandbox, debug_sandbox_id, whose envd is at E2B_SANDBOX_URL, by default "
                    "http://localhost:49983."},
      {"E2B_VALIDATE_API_KEY", "false: take keys of any format (self-hosted platforms)."},
      {"E2B_MAX_CONNECTIONS, E2B_MAX_KEEPALIVE_CONNECTIONS, E2B_KEEPALIVE_EXPIRY", "Limits of connections, as in the official SDKs; see the mount options."},
      {"http_proxy, https_proxy, all_proxy, no_proxy", "Proxies, as curl reads them."},
      {"SSL_CERT_FILE, SSL_CERT_DIR", "Certificates of a private authority: a file, and directories with ':' between."},
      {"XDG_CACHE_HOME", "Where content that was read is kept ($XDG_CACHE_HOME/e2bfs, else ~/.cache/e2bfs, else /var/tmp/e2bfs-cache-<uid>), unless -o cache= "
                         "says otherwise."},
      {"XDG_STATE_HOME, XDG_RUNTIME_DIR", "Where unsent data and logs ($XDG_STATE_HOME/e2bfs, else ~/.local/state/e2bfs, else "
                                          "/var/tmp/e2bfs-<uid>) and control sockets ($XDG_RUNTIME_DIR/e2bfs, else /run/e2bfs for root, else /tmp/e2bfs-<uid>) are kept."},
  };
  return lines;
}

const std::vector<TableLine>& ExitStatusTable() {
  static const std::vector<TableLine> lines = {
      {"0", "Success."},
      {"1", "A failure without a status of its own."},
      {"2", "Unknown command, option or value; also of an environment variable."},
      {"3", "No API key, or it was refused."},
      {"4", "No such sandbox, or it does not run."},
      {"5", "The control plane or the sandbox cannot be reached."},
      {"6", "The local directory is missing, busy, stale, or not a mount of e2bfs."},
      {"7", "This machine cannot mount: no /dev/fuse, or no fusermount3."},
      {"8", "Data could not be sent: it is still mounted, or the data was put aside, or still is (recover); which and where, is printed."},
      {"9", "The path in the sandbox is not there, or is not a directory."},
      {"10", "All is sent, and some of it lies beside what others changed in the sandbox (recover); which and where, is printed."},
      {"130", "Interrupted."},
  };
  return lines;
}

}  // namespace e2bfs::fuse
