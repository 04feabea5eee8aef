#include "reports/text_table.hpp"

#include <cmath>

#include <gtest/gtest.h>

#include "reports/numbers.hpp"

namespace attnbench {
namespace {

using Side = Column::Side;

TEST(DisplayWidth, CountsWhatATerminalShows) {
  EXPECT_EQ(display_width("abc"), 3u);
  EXPECT_EQ(display_width("±1 µs"), 5u);
  EXPECT_EQ(display_width("e\u0301"), 1u);
  EXPECT_EQ(display_width("注意"), 4u);
  EXPECT_EQ(display_width("\xff\xfe"), 2u);
}

TEST(TextTable, AlignsColumns) {
  const TextTable table{"T", {{"case", Side::left}, {"us"}}, {{{"a"}, {"1.00"}}, {{"long ±"}, {"12"}}}, 1, "n"};
  EXPECT_EQ(to_text(table, {}),
            "T\n"
            "case      us\n"
            "──────  ────\n"
            "a       1.00\n"
            "long ±    12\n"
            "n\n");
}

TEST(TextTable, ColoursOnlyWhenAsked) {
  const TextTable table{"", {{"x"}}, {{{"1", Tone::bad}}}, 0, ""};
  EXPECT_EQ(to_text(table, {}).find('\033'), std::string::npos);
  EXPECT_NE(to_text(table, {.colour = true}).find("\033[31m1\033[0m"), std::string::npos);
}

TEST(TextTable, RepeatsTheKeyWhenItIsTooWide) {
  const TextTable table{"", {{"k", Side::left}, {"aaaa"}, {"bbbb"}}, {{{"r"}, {"1"}, {"2"}}}, 1, ""};
  EXPECT_EQ(to_text(table, {.width = 9}),
            "k  aaaa\n─  ────\nr     1\n"
            "\n"
            "k  bbbb\n─  ────\nr     2\n");
}

TEST(TextTable, CountsTheRowsThatItLeavesOut) {
  const TextTable table{"", {{"k"}}, {{{"1"}}, {{"2"}}, {{"3"}}}, 0, ""};
  EXPECT_EQ(to_text(table, {.max_rows = 1}), "k\n─\n1\n… and 2 more rows, in summary.md\n");
}

TEST(TextTable, MarkdownEscapesBars) {
  const TextTable table{"T", {{"a|b", Side::left}, {"n"}}, {{{"x|y"}}}, 1, ""};
  EXPECT_EQ(to_markdown(table), "### T\n\n| a\\|b | n |\n| :-- | --: |\n| x\\|y |  |\n");
}

TEST(Numbers, ThreeSignificantDigits) {
  EXPECT_EQ(significant(0), "0");
  EXPECT_EQ(significant(412.4), "412");
  EXPECT_EQ(significant(4.1), "4.10");
  EXPECT_EQ(significant(0.04123), "0.0412");
  EXPECT_EQ(significant(999.7), "1000");
  EXPECT_EQ(significant(-12345.6), "-12346");
  EXPECT_EQ(significant(1.234e-7), "1.23e-07");
  EXPECT_EQ(significant(NAN), "nan");
  EXPECT_EQ(significant(-INFINITY), "-inf");
}

TEST(Numbers, Bytes) {
  EXPECT_EQ(bytes_text(0), "0 B");
  EXPECT_EQ(bytes_text(1023), "1023 B");
  EXPECT_EQ(bytes_text(3 << 19), "1.50 MiB");
}

TEST(Numbers, UnitOfATable) {
  EXPECT_EQ(time_unit(std::vector<double>{5e6, 900.0}).name, "us");
  EXPECT_EQ(time_unit(std::vector<double>{5e6, 1900.0}).name, "ms");
  EXPECT_EQ(time_unit(std::vector<double>{5e6, NAN}).name, "s");
  EXPECT_EQ(time_unit(std::vector<double>{}).name, "us");
  EXPECT_EQ(rate_unit(std::vector<double>{0.5, 1.5}).name, "TFLOP/s");
  EXPECT_EQ(rate_unit(std::vector<double>{0.5, 0.02}).name, "GFLOP/s");
}

}  // namespace
}  // namespace attnbench
