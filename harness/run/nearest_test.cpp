#include "harness/run/nearest.hpp"

#include <gtest/gtest.h>

#include "harness/run/version.hpp"

namespace attnbench {
namespace {

TEST(Nearest, ADroppedLetterIsNearerThanAReplacedOne) {
  EXPECT_EQ(edit_cost("hd", "d"), 2);
  EXPECT_EQ(edit_cost("hd", "hq"), 3);
  EXPECT_EQ(edit_cost("casual", "causal"), 3);
  EXPECT_EQ(edit_cost("", "abc"), 6);
  EXPECT_EQ(edit_cost("same", "same"), 0);
  EXPECT_EQ(nearest("hd", {"b", "hq", "hkv", "d"}), "d");
}

TEST(Nearest, NothingIsMeantByAWordFarFromAll) {
  EXPECT_EQ(nearest("quadratic", {"none", "causal"}), "");
  EXPECT_EQ(nearest(std::string(100, 'd'), {"d"}), "");
  EXPECT_EQ(did_you_mean("zzzz", {"d"}), "");
  EXPECT_EQ(did_you_mean("smok", {"smoke", "full"}), "; did you mean 'smoke'?");
}

TEST(Version, IsComparedNumberByNumber) {
  EXPECT_LT(compare_versions("2.0.9", "2.1.0"), 0);
  EXPECT_GT(compare_versions("2.10.0", "2.9.1"), 0);
  EXPECT_GT(compare_versions("10.0", "2.1.0"), 0);
  EXPECT_EQ(compare_versions("2.1", "2.1.0"), 0);
  EXPECT_EQ(compare_versions("2.11.0+cpu", "2.11.0"), 0);
  EXPECT_EQ(compare_versions("2.7.4.post1", "2.7.4"), 0);
  EXPECT_GT(compare_versions("main", "999.0"), 0);
}

}  // namespace
}  // namespace attnbench
