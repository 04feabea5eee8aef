#include "reports/latex.hpp"

#include <fmt/format.h>

#include "reports/timing_tables.hpp"

namespace attnbench {
namespace {

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

std::string latex_escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\') {
      out += "\\textbackslash{}";
    } else if (c == '~' || c == '^') {
      out += fmt::format("\\{}{{}}", c);
    } else {
      if (std::string_view("&%$#_{}").find(c) != std::string_view::npos) out += '\\';
      out += c;
    }
  }
  replace_all(out, "±", "$\\pm$");
  replace_all(out, "·", "--");
  return out;
}

std::string row_text(const std::vector<Cell>& row) {
  std::string text;
  for (std::size_t c = 0; c < row.size(); ++c) {
    const std::string cell = latex_escaped(row[c].text);
    text += c == 0 ? "" : " & ";
    text += row[c].tone == Tone::good ? fmt::format("\\textbf{{{}}}", cell) : cell;
  }
  return "  " + text + " \\\\\n";
}

std::string table_text(const TextTable& table) {
  std::string sides;
  std::vector<Cell> header;
  for (const Column& column : table.columns) {
    sides += column.side == Column::Side::left ? 'l' : 'r';
    header.push_back({column.header});
  }
  std::string text = fmt::format("\\begin{{table}}\n\\caption{{{}.{}}}\n\\begin{{tabular}}{{{}}}\n  \\toprule\n",
                                 latex_escaped(table.title), table.note.empty() ? "" : " " + latex_escaped(table.note), sides);
  text += row_text(header) + "  \\midrule\n";
  for (const auto& row : table.rows) text += row_text(row);
  return text + "  \\bottomrule\n\\end{tabular}\n\\end{table}\n";
}

}  // namespace

std::string latex_tables(const RunData& run) {
  std::string text;
  for (const auto& tables : {time_tables(run), rate_tables(run), step_time_tables(run), step_memory_tables(run)}) {
    for (const TextTable& table : tables) text.append(text.empty() ? "" : "\n").append(table_text(table));
  }
  return text.empty() ? "% Nothing was timed: there is no table.\n" : text;
}

}  // namespace attnbench
