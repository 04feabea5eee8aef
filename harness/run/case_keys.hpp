// Every key of a case line, in the order of the canonical form: how it is read, how it is written, what it is when left out.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "harness/run/case.hpp"
#include "harness/run/case_text.hpp"

namespace attnbench {

struct Key {
  std::string_view name;
  void (*parse)(const Token&, Case&);        ///< throws CaseError on a malformed or out-of-range value
  std::string (*format)(const Case&);        ///< the value as text
  std::string (*default_text)(const Case&);  ///< the text that is left out; "" = there is no default, the key always stands
};

std::span<const Key> case_keys();      ///< of the operation `attention`
std::span<const Key> llama_keys();     ///< of the operation `llama`, for a case that has its part
std::span<const Key> training_keys();  ///< of the operation `training`, likewise
std::span<const Key> metadata_keys();  ///< what may stand after '#'

struct Operation {
  std::string_view name;
  std::span<const Key> keys;                 ///< the identity
  void (*begin)(Case&);                      ///< gives a case the operation's part
  void (*complete)(const CaseText&, Case&);  ///< keys that depend on each other, once each has been read; throws CaseError
  std::string_view backends;                 ///< the operation that those declare who run its cases
};

/// attention, llama, training.
std::span<const Operation> operations();
/// That of a case.
const Operation& operation(const Case& c);
/// That of a line. Throws CaseError that names the known ones.
const Operation& operation(const CaseText& text);

/// The metadata on which the verdict on a case depends, as it stands behind '#': "expect=must_differ instead=top_left"; "": none.
std::string format_terms(const Case& c);

/// The case with such metadata, from a line and what format_terms() gave. Throws CaseError.
Case case_with_terms(const std::string& line, const std::string& terms);

/// Throws CaseError that names the nearest known key.
const Key& find_key(std::span<const Key> keys, const Token& token);

/// A case from a line without sweeps; keys that depend on others are filled in and checked together.
Case case_from(const CaseText& text);

}  // namespace attnbench
