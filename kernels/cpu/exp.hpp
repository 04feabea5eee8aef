// e^x on vectors: x = n ln2 + r with |r| <= ln2 / 2, e^x = 2^n (1 + r + r^2 q(r)).
//
// q is the polynomial of degree 4 with the least largest error relative to e^r (Lawson's iteration, float64;
// 3.6e-9 after its coefficients were rounded to float), ln2 is split so that n times its high part is exact.
// Error: below 1.5 ulp where e^x is a normal number (measured in exp_test.cpp); subnormal results are right to one
// unit; e^-inf = 0, e^x = inf above 88.73, NaN stays.
#pragma once

#include "kernels/cpu/vector.hpp"

namespace attnbench::flash_varlen::cpu {

ATTNBENCH_INLINE Float exp(Float x) {
  x = max(broadcast(-105.f), x);  // e^-105 is less than half the smallest subnormal
  x = min(broadcast(89.f), x);
  const Float to_integer = broadcast(0x1.8p23f);  // in this binade the spacing of floats is 1
  const Float shifted = x * 0x1.715476p+0f + to_integer;
  const Float n = shifted - to_integer;
  Float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Float q = r * 0x1.6a23d0p-10f + 0x1.123a20p-7f;
  q = q * r + 0x1.5558f2p-5f;
  q = q * r + 0x1.555492p-3f;
  q = q * r + 0x1.fffffcp-2f;
  const Float power = q * (r * r) + r + 1.f;
  return scale_by_power_of_two(power, bits<Int>(shifted) - bits<Int>(to_integer));
}

}  // namespace attnbench::flash_varlen::cpu
