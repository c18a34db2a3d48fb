#include "cache/extent_map.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace e2bfs::cache {
namespace {

using transport::Extent;
using Extents = std::vector<Extent>;

TEST(ExtentMapTest, TouchingRangesBecomeOne) {
  ExtentMap map;
  map.Add(Extent{10, 5});
  map.Add(Extent{20, 5});
  map.Add(Extent{15, 5});
  EXPECT_EQ(map.extents(), (Extents{{10, 15}}));
  EXPECT_EQ(map.end(), 25);
}

TEST(ExtentMapTest, RemovingTheMiddleLeavesTwo) {
  ExtentMap map;
  map.Add(Extent{0, 100});
  map.Remove(Extent{40, 20});
  EXPECT_EQ(map.extents(), (Extents{{0, 40}, {60, 40}}));
  EXPECT_EQ(map.Within(Extent{30, 40}), (Extents{{30, 10}, {60, 10}}));
}

TEST(ExtentMapTest, AgreesWithAnArrayOfBits) {
  constexpr int kSize = 200;
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    ExtentMap map;
    std::vector<bool> bits(kSize, false);
    for (int step = 0; step < 40; ++step) {
      const int offset = static_cast<int>(random() % kSize);
      const int length = static_cast<int>(random() % 30);
      const int end = std::min(offset + length, kSize);
      const auto kind = random() % 8;
      if (kind < 5) map.Add(Extent{offset, end - offset});
      if (kind == 5 || kind == 6) map.Remove(Extent{offset, end - offset});
      if (kind == 7) map.ClipTo(offset);
      for (int i = 0; i < kSize; ++i) {
        if (kind < 5 && i >= offset && i < end) bits[i] = true;
        if ((kind == 5 || kind == 6) && i >= offset && i < end) bits[i] = false;
        if (kind == 7 && i >= offset) bits[i] = false;
      }
      Extents expected;
      int64_t bytes = 0;
      for (int i = 0; i < kSize; ++i) {
        if (!bits[i]) continue;
        ++bytes;
        if (i > 0 && bits[i - 1]) {
          ++expected.back().length;
        } else {
          expected.push_back(Extent{i, 1});
        }
      }
      ASSERT_EQ(map.extents(), expected) << "round " << round << " step " << step;
      ASSERT_EQ(map.bytes(), bytes);
    }
  }
}

}  // namespace
}  // namespace e2bfs::cache
