#include "harness/worker/npy.hpp"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>

#include <fmt/format.h>

namespace attnbench {
namespace {

const char* npy_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kBool:
      return "|b1";
    case at::kByte:
      return "|u1";
    case at::kInt:
      return "<i4";
    case at::kLong:
      return "<i8";
    case at::kHalf:
      return "<f2";
    case at::kFloat:
      return "<f4";
    case at::kDouble:
      return "<f8";
    default:
      throw std::runtime_error(fmt::format("npy: no such type of elements: {}", c10::toString(dtype)));
  }
}

/// Magic, version, length, and a Python dictionary; all of it a multiple of 64 bytes.
std::string npy_header(const at::Tensor& tensor) {
  std::string shape;
  for (const int64_t size : tensor.sizes()) shape += fmt::format("{},", size);
  std::string header =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", npy_type(tensor.scalar_type()), shape);
  constexpr size_t kBefore = 10, kAlignment = 64;
  header.append((kAlignment - (kBefore + header.size() + 1) % kAlignment) % kAlignment, ' ');
  header += '\n';
  const auto length = static_cast<uint16_t>(header.size());
  return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(length & 0xff) + static_cast<char>(length >> 8) + header;
}

}  // namespace

void write_npy(const std::filesystem::path& file, const at::Tensor& tensor) {
  at::Tensor plain = tensor.detach().to(at::kCPU);
  if (plain.scalar_type() == at::kBFloat16) plain = plain.to(at::kFloat);
  plain = plain.contiguous();
  const std::string header = npy_header(plain);
  std::ofstream out(file, std::ios::binary);
  out.write(header.data(), static_cast<std::streamsize>(header.size()));
  out.write(static_cast<const char*>(plain.const_data_ptr()), static_cast<std::streamsize>(plain.nbytes()));
  out.close();
  if (!out) throw std::runtime_error(fmt::format("{}: cannot be written: {}", file.string(), std::strerror(errno)));
}

}  // namespace attnbench
