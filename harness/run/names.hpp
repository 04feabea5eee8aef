// The names that the case grammar, the declarations and the messages give to enumerators: one table for each enum.
#pragma once

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "harness/run/case.hpp"

namespace attnbench {

template <class E>
struct Named {
  E value;
  std::string_view name;
};

/// Specialised below, and beside an enum that only one file names.
template <class E>
inline constexpr std::array<Named<E>, 0> kNames{};

template <>
inline constexpr auto kNames<Dtype> =
    std::to_array<Named<Dtype>>({{Dtype::bf16, "bf16"}, {Dtype::fp16, "fp16"}, {Dtype::fp32, "fp32"}});
template <>
inline constexpr auto kNames<Mask> = std::to_array<Named<Mask>>({{Mask::none, "none"}, {Mask::causal, "causal"}});
template <>
inline constexpr auto kNames<Align> = std::to_array<Named<Align>>({{Align::bottom_right, "bottom_right"},
                                                                   {Align::top_left, "top_left"}});
template <>
inline constexpr auto kNames<Layout> = std::to_array<Named<Layout>>({{Layout::packed, "packed"}, {Layout::padded, "padded"}});
template <>
inline constexpr auto kNames<Pad> =
    std::to_array<Named<Pad>>({{Pad::right, "right"}, {Pad::left, "left"}, {Pad::holes, "holes"}});
template <>
inline constexpr auto kNames<PositionIds> = std::to_array<Named<PositionIds>>({{PositionIds::own, "own"},
                                                                               {PositionIds::one_row, "one_row"},
                                                                               {PositionIds::from_mask, "from_mask"},
                                                                               {PositionIds::none, "none"}});
template <>
inline constexpr auto kNames<PartDtype> = std::to_array<Named<PartDtype>>({{PartDtype::same, "same"}, {PartDtype::fp32, "fp32"}});
template <>
inline constexpr auto kNames<InputNorm> =
    std::to_array<Named<InputNorm>>({{InputNorm::none, "none"}, {InputNorm::same, "same"}, {InputNorm::fp32, "fp32"}});
template <>
inline constexpr auto kNames<CastParts> = std::to_array<Named<CastParts>>(
    {{CastParts::none, "none"}, {CastParts::norms, "norms"}, {CastParts::norms_and_adapters, "norms_and_adapters"}});
template <>
inline constexpr auto kNames<Implementation> = std::to_array<Named<Implementation>>({{Implementation::original, "original"},
                                                                                     {Implementation::patched, "patched"}});
template <>
inline constexpr auto kNames<SwitchStep> =
    std::to_array<Named<SwitchStep>>({{SwitchStep::enable_class, "enable_class"},
                                      {SwitchStep::enable_instance, "enable_instance"},
                                      {SwitchStep::enable_layer, "enable_layer"},
                                      {SwitchStep::enable_other_layer, "enable_other_layer"},
                                      {SwitchStep::disable_class, "disable_class"},
                                      {SwitchStep::disable_instance, "disable_instance"},
                                      {SwitchStep::disable_layer, "disable_layer"},
                                      {SwitchStep::disable_other_layer, "disable_other_layer"},
                                      {SwitchStep::lora_wrap, "lora_wrap"},
                                      {SwitchStep::reimport, "reimport"},
                                      {SwitchStep::new_instance, "new_instance"}});
template <>
inline constexpr auto kNames<Pass> = std::to_array<Named<Pass>>({{Pass::forward, "forward"}, {Pass::backward, "backward"}});
template <>
inline constexpr auto kNames<Fill> = std::to_array<Named<Fill>>({{Fill::normal, "normal"},
                                                                 {Fill::peaked, "peaked"},
                                                                 {Fill::shifted_negative, "shifted_negative"},
                                                                 {Fill::deep_negative, "deep_negative"},
                                                                 {Fill::ramp, "ramp"},
                                                                 {Fill::mean_offset, "mean_offset"},
                                                                 {Fill::row_scale, "row_scale"},
                                                                 {Fill::sparse_int, "sparse_int"},
                                                                 {Fill::unit, "unit"},
                                                                 {Fill::ones_v, "ones_v"}});
template <>
inline constexpr auto kNames<Dout> = std::to_array<Named<Dout>>(
    {{Dout::normal, "normal"}, {Dout::one_hot, "one_hot"}, {Dout::zeros, "zeros"}, {Dout::ones, "ones"}});
template <>
inline constexpr auto kNames<Strides> = std::to_array<Named<Strides>>({{Strides::contiguous, "contiguous"},
                                                                       {Strides::transposed, "transposed"},
                                                                       {Strides::v_transposed, "v_transposed"},
                                                                       {Strides::dout_transposed, "dout_transposed"},
                                                                       {Strides::stride0, "stride0"},
                                                                       {Strides::unaligned, "unaligned"},
                                                                       {Strides::far, "far"}});
template <>
inline constexpr auto kNames<Expect> = std::to_array<Named<Expect>>({{Expect::equal, "equal"},
                                                                     {Expect::must_differ, "must_differ"},
                                                                     {Expect::must_throw, "must_throw"}});
template <>
inline constexpr auto kNames<DeviceKind> =
    std::to_array<Named<DeviceKind>>({{DeviceKind::cpu, "cpu"}, {DeviceKind::cuda, "cuda"}, {DeviceKind::any, "any"}});

/// Throws std::logic_error for a value that is no enumerator.
template <class E>
std::string_view find_name(E value) {
  for (const auto& named : kNames<E>)
    if (named.value == value) return named.name;
  throw std::logic_error("no name for enumerator " + std::to_string(static_cast<int>(value)));
}

template <class E>
std::optional<E> find_value(std::string_view name) {
  for (const auto& named : kNames<E>)
    if (named.name == name) return named.value;
  return std::nullopt;
}

template <class E>
std::vector<std::string_view> all_names() {
  std::vector<std::string_view> names;
  for (const auto& named : kNames<E>) names.push_back(named.name);
  return names;
}

}  // namespace attnbench
