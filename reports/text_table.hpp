// One table, printed as text for a terminal or as Markdown.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace attnbench {

enum class Tone { plain, good, bad, warning, dim };

struct Cell {
  std::string text;  ///< UTF-8, one line
  Tone tone = Tone::plain;
};

struct Column {
  enum class Side { left, right };
  std::string header;  ///< units belong here
  Side side = Side::right;
};

struct TextTable {
  std::string title;
  std::vector<Column> columns;
  std::vector<std::vector<Cell>> rows;  ///< shorter rows end in empty cells
  std::size_t key_columns = 1;          ///< repeated in every block when the table is too wide for one
  std::string note;                     ///< a sentence below the table; may be empty
};

struct TextStyle {
  bool colour = false;        ///< ANSI escapes; for terminals only
  std::size_t width = 120;    ///< columns of the terminal; a table that is wider is printed in blocks
  std::size_t max_rows = 40;  ///< 0: all; else the rest is counted in a line below
};

/// Columns that a terminal gives the text: combining marks take none, East Asian wide characters two.
std::size_t display_width(std::string_view utf8);

/// `text` in the tone's colour, or as it is without colour.
std::string tinted(std::string_view text, Tone tone, bool colour);

std::string to_text(const TextTable& table, const TextStyle& style);

/// A GitHub table under a "###" heading; a column whose cells hold a "|" stays one column.
std::string to_markdown(const TextTable& table);

}  // namespace attnbench
