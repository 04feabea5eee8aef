// What known mistakes look like: signatures of planted defects, and which of them a wrong result resembles most.
//
// The book is data (cases/signatures.json), written by `attnbench report RUN --format signatures` from the records of a selftest.
// Of a defect's signatures it keeps those that are not near one another.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "harness/run/run_data.hpp"
#include "harness/run/signature.hpp"

namespace attnbench {

struct KnownSignature {
  std::string defect;  ///< "last_key_dropped", whichever backend had it
  Signature signature;
};

struct SignatureBook {
  std::map<std::string, std::string> defects;  ///< name -> what such a kernel does, a sentence without its end; may be empty
  std::vector<KnownSignature> signatures;
};

/// Every signature among the records of planted backends; condense() leaves out what is near another of its defect and pass.
SignatureBook collect_signatures(const RunData& selftest);
SignatureBook condense(const SignatureBook& all);

/// A defect and how far its nearest signature is.
struct Resemblance {
  std::string defect;
  double distance = 0;
};

/// All defects that the book knows in that pass, the nearest first.
std::vector<Resemblance> resemblances(const SignatureBook& book, const Signature& signature);

/// Within the first distance the nearest is named; up to the second only where it is alone, the next being so much further: else
/// mistakes that the book does not know are taken for one that it knows. cases/README.md has the numbers.
inline constexpr double kAlike = 2, kFurthestAlike = 4, kAlone = 2;
/// As near as the nearest, to people.
inline constexpr double kAsNear = 0.5;

/// The first of these (resemblances()) is near enough to be named.
bool is_alike(const std::vector<Resemblance>& order);

/// How often the book would be right about cases that it has not seen: each signature is compared with those of other lines alone
/// (a line without its dtype), condensed without it.
struct BookScore {
  int64_t signatures = 0;      ///< whose defect other lines have in that pass, too
  int64_t first = 0;           ///< named first
  int64_t among_three = 0;     ///< among the first three
  int64_t unknown = 0;         ///< said to be like none
  int64_t first_of_known = 0;  ///< named first, of those that are not
  int64_t mistaken = 0;        ///< said to be like another defect by a book from which their own is taken out
};
BookScore leave_one_line_out(const SignatureBook& all);

/// {"score":{…},"defects":{NAME:WHAT},"signatures":[{"defect":…,"pass":…,"case":…,"tensors":{…}},…]}, a signature a line.
std::string to_text(const SignatureBook& book, const BookScore& score);

/// Throws UsageError with a sentence. `file` empty: cases/signatures.json.
SignatureBook read_signatures(const std::filesystem::path& file);

}  // namespace attnbench
