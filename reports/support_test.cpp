// `attnbench support` says what each backend takes: nothing that a backend can declare may be left out.
#include "reports/support.hpp"

#include <gtest/gtest.h>

#include "harness/run/names.hpp"

namespace attnbench {
namespace {

template <class E>
std::vector<E> all_of() {
  std::vector<E> values;
  for (const auto& named : kNames<E>) values.push_back(named.value);
  return values;
}

/// Takes everything.
Declaration able() {
  Declaration declaration;
  declaration.name = "able";
  Capabilities& can = declaration.capabilities;
  can.devices = {"cpu"};
  can.dtypes = all_of<Dtype>();
  can.passes = all_of<Pass>();
  can.layouts = all_of<Layout>();
  can.masks = all_of<Mask>();
  can.aligns = all_of<Align>();
  can.strides = all_of<Strides>();
  can.dv_differs = can.window = can.softcap = can.alibi = can.sink = can.dropout = can.tail = true;
  return declaration;
}

std::string report_of(const nlohmann::json& declaration) {
  return support_report({kProtocol, "test", {"cpu", 0, std::nullopt, "test"}, {declaration.get<Declaration>()}, {}}, {}, {});
}

/// Each line of a declaration's JSON, taken back, has to change the table: one that was added without a row fails here.
TEST(Support, ShowsEveryCapability) {
  const nlohmann::json whole = able();
  const std::string all = report_of(whole);
  EXPECT_EQ(all.find("Why not"), std::string::npos) << all;
  int flags = 0, values = 0;
  for (const auto& [key, value] : whole.at("capabilities").items()) {
    nlohmann::json less = whole;
    nlohmann::json& changed = less["capabilities"][key];
    if (value.is_boolean()) {
      changed = !value.get<bool>();
      if (key == "returns_lse") less["conventions"]["lse_empty"] = "none";  // what is not returned has no convention
      EXPECT_NE(report_of(less), all) << key;
      ++flags;
    }
    for (size_t i = 0; value.is_array() && i < value.size(); ++i) {
      changed = value;
      changed.erase(i);
      EXPECT_NE(report_of(less), all) << key << " without " << value[i];
      ++values;
    }
  }
  EXPECT_GE(flags, 12);
  EXPECT_GE(values, 16);
}

}  // namespace
}  // namespace attnbench
