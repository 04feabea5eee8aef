#include "reports/text_table.hpp"

#include <algorithm>
#include <cstdint>

#include <fmt/format.h>

namespace attnbench {
namespace {

constexpr std::string_view kGap = "  ";

/// The code point at `at`, which moves behind it. A byte that is not UTF-8 counts as one character.
uint32_t next_code_point(std::string_view text, std::size_t& at) {
  const auto lead = static_cast<unsigned char>(text[at++]);
  const int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : lead >= 0xC0 ? 1 : 0;
  uint32_t code = more == 0 ? lead : lead & (0x3Fu >> more);
  for (int i = 0; i < more && at < text.size() && (text[at] & 0xC0) == 0x80; ++i) code = code << 6 | (text[at++] & 0x3Fu);
  return code;
}

std::size_t width_of(uint32_t code) {
  const bool combining = (code >= 0x300 && code <= 0x36F) || code == 0x200B || code == 0xFE0F;
  if (combining) return 0;
  const bool wide = (code >= 0x1100 && code <= 0x115F) || (code >= 0x2E80 && code <= 0xA4CF) ||
                    (code >= 0xAC00 && code <= 0xD7A3) || (code >= 0xF900 && code <= 0xFAFF) ||
                    (code >= 0xFE30 && code <= 0xFE6F) || (code >= 0xFF00 && code <= 0xFF60) ||
                    (code >= 0x1F300 && code <= 0x1FAFF) || (code >= 0x20000 && code <= 0x3FFFD);
  return wide ? 2 : 1;
}

const Cell& cell_at(const std::vector<Cell>& row, std::size_t column) {
  static const Cell empty;
  return column < row.size() ? row[column] : empty;
}

std::string padded(const Cell& cell, std::size_t width, Column::Side side, bool colour) {
  const std::size_t used = display_width(cell.text);
  const std::string space(width > used ? width - used : 0, ' ');
  const std::string text = tinted(cell.text, cell.tone, colour);
  return side == Column::Side::left ? text + space : space + text;
}

std::string without_trailing_spaces(std::string line) {
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

std::vector<std::size_t> column_widths(const TextTable& table) {
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < table.columns.size(); ++c) {
    std::size_t width = display_width(table.columns[c].header);
    for (const auto& row : table.rows) width = std::max(width, display_width(cell_at(row, c).text));
    widths.push_back(width);
  }
  return widths;
}

/// The columns of each block: the key columns, and as many others as fit; at least one.
std::vector<std::vector<std::size_t>> blocks_of(const TextTable& table, const std::vector<std::size_t>& widths,
                                                std::size_t limit) {
  std::vector<std::size_t> keys;
  std::size_t key_width = 0;
  for (std::size_t c = 0; c < std::min(table.key_columns, widths.size()); ++c) {
    keys.push_back(c);
    key_width += widths[c] + kGap.size();
  }
  std::vector<std::vector<std::size_t>> blocks{keys};
  std::size_t used = key_width;
  for (std::size_t c = keys.size(); c < widths.size(); ++c) {
    if (used + widths[c] > limit && blocks.back().size() > keys.size()) {
      blocks.push_back(keys);
      used = key_width;
    }
    blocks.back().push_back(c);
    used += widths[c] + kGap.size();
  }
  return blocks;
}

std::string block_text(const TextTable& table, const std::vector<std::size_t>& columns, const std::vector<std::size_t>& widths,
                       std::size_t rows, bool colour) {
  std::string header, rule;
  for (const std::size_t c : columns) {
    header += padded({table.columns[c].header}, widths[c], table.columns[c].side, false) + std::string(kGap);
    for (std::size_t i = 0; i < widths[c]; ++i) rule += "─";
    rule += kGap;
  }
  std::string text = without_trailing_spaces(header) + "\n" + tinted(without_trailing_spaces(rule), Tone::dim, colour) + "\n";
  for (std::size_t r = 0; r < rows; ++r) {
    std::string line;
    for (const std::size_t c : columns)
      line += padded(cell_at(table.rows[r], c), widths[c], table.columns[c].side, colour) + std::string(kGap);
    text += without_trailing_spaces(line) + "\n";
  }
  return text;
}

std::string markdown_cell(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '|') escaped += '\\';
    escaped += c == '\n' ? ' ' : c;
  }
  return escaped;
}

}  // namespace

std::size_t display_width(std::string_view utf8) {
  std::size_t width = 0;
  for (std::size_t at = 0; at < utf8.size();) width += width_of(next_code_point(utf8, at));
  return width;
}

std::string tinted(std::string_view text, Tone tone, bool colour) {
  if (!colour || tone == Tone::plain || text.empty()) return std::string(text);
  const int code = tone == Tone::good ? 32 : tone == Tone::bad ? 31 : tone == Tone::warning ? 33 : 2;
  return fmt::format("\033[{}m{}\033[0m", code, text);
}

std::string to_text(const TextTable& table, const TextStyle& style) {
  const std::size_t rows = style.max_rows == 0 ? table.rows.size() : std::min(style.max_rows, table.rows.size());
  const auto widths = column_widths(table);
  std::string text = table.title.empty() ? "" : (style.colour ? "\033[1m" + table.title + "\033[0m" : table.title) + "\n";
  bool first = true;
  for (const auto& columns : blocks_of(table, widths, style.width)) {
    if (!first) text += "\n";
    first = false;
    text += block_text(table, columns, widths, rows, style.colour);
  }
  if (rows < table.rows.size()) text += fmt::format("… and {} more rows, in summary.md\n", table.rows.size() - rows);
  if (!table.note.empty()) text += tinted(table.note, Tone::dim, style.colour) + "\n";
  return text;
}

std::string to_markdown(const TextTable& table) {
  std::string text = table.title.empty() ? "" : "### " + table.title + "\n\n";
  std::string header = "|", rule = "|";
  for (const Column& column : table.columns) {
    header += fmt::format(" {} |", markdown_cell(column.header));
    rule += column.side == Column::Side::left ? " :-- |" : " --: |";
  }
  text += header + "\n" + rule + "\n";
  for (const auto& row : table.rows) {
    text += "|";
    for (std::size_t c = 0; c < table.columns.size(); ++c) text += fmt::format(" {} |", markdown_cell(cell_at(row, c).text));
    text += "\n";
  }
  if (!table.note.empty()) text += "\n" + table.note + "\n";
  return text;
}

}  // namespace attnbench
