// How wrong a correct low-precision attention kernel is allowed to be: the formulas that both oracles implement.
//
// u: largest relative rounding error of the dtype (bf16 2^-8, fp16 2^-11, fp32 2^-24); f: half its smallest subnormal
// where that matters (fp16 2^-25); e = 2^-24; s: softmax scale; k = 2 + d/16: roundings of a dot product of d terms;
// n: terms of a sum; ulp(x): spacing of the dtype at x. A rounding error of at most h has a variance of at most h^2/3.
//   A_ij = s sum_x |q_x k_x|          eS = e (4 + k A_ij)               error of a score, and of its exp
//   hP = max(u P, f / l)              P stored unnormalised (f where it is normalised first, 0 where it is not rounded)
//   hB = max(u P, f)                  P stored for P^T dO;    hS = max(u |dS|, f)    dS stored; s dS stored: max(u |dS|, f / |s|)
//   hS^2 + hB^2 (dP - D)^2 in place of hS^2 where dS is computed from the stored P
//   eL = e (2 + 2 |L|)                error of exp(S - L) in the backward through L
//   sL = e (4 + |L| + k sum_j P A + sqrt(n))                            error of the LSE
//   edP = e k (|dP| + sqrt(sum_x dO^2 v^2));   eT = P (edP + eD)         accumulation of dP and of D
//   eD = 2 e sum_x |dO O| (D from O)   or   sum_j P (e (2 + sqrt(n)) |dP| + edP) (D from P o dP)
//   sD^2 = sum_j (hP^2/3 dP^2 + P^2 eS^2 (dP - D)^2) + sum_x dO^2 ulp(O)^2/12  (the hP and ulp terms: D from O only)
// Flash and fp32-inside:
//   var o  = ulp(o)^2/12 + sum_j hP^2/3 V^2 + sum_j P^2 eS^2 (V - O)^2
//   var dv = ulp(dv)^2/12 + sum_i (hB^2/3 + P^2 (eS^2 + eL^2)) dO^2
//   var dq = ulp(dq)^2/12 + s^2 sum_j (hS^2/3 + dS^2 eS^2) K^2 + eL^2 dq^2 + bQ^2
//            + [s^2 sD^2 (sum_j P K)^2]                  with bQ = s sum_j eT |K|
//   var dk = ulp(dk)^2/12 + s^2 sum_i (hS^2/3 + dS^2 (eS^2 + eL^2)) Q^2 + bK^2
//            + [s^2 sum_i P^2 sD^2 Q^2]                  with bK = s sum_i eT |Q|
// In brackets: end to end only, with u^2 P^2 sD^2 added to hS^2; gradients given a kernel's own O have no such terms.
// Eager (Q K^T, s S, P, dP, dS and s dS rounded): what it rounds does not depend on tiles or on the order of a sum, so the
// oracles round it too. Uncertain is only what lies nearer to a tie than 4 times the fp32 error before it: it may have gone to
// the other side, v = ulp^2/2. An uncertain S or dP moves its own P and dS, and through l and D those of the whole row; the two
// may cancel, unless the next rounding swallows the latter: 3 times the squares of each. Of an uncertain Q K^T or dS, x, what is
// stored of s x is uncertain within |s| ulp(x) of a tie, and its v has s^2 v of x in it. edP is 0: dP is replayed.
//   eS = e (4 + |log P| + sqrt(n))    error of P in fp32, whose scores are the rounded ones;   w = 3 P^2 vS
//   var o  = ulp(o)^2/12 + sum_j (vP + w) V^2 + O^2 sum_j w + sum_j P^2 eS^2 (V - O)^2
//   var dv = ulp(dv)^2/12 + sum_i (vP + w + P^2 (eS^2 + sum_k w_k)) dO^2
//   x = 3 (dS^2 vS + P^2 vdP);   v of s dS holds that of dS
//   var dq = ulp(dq)^2/12 + sum_j v K^2 + s^2 (sum_j (x + dS^2 eS^2) K^2 + (sum_j P K)^2 sum_j x + (sum_j dS K)^2 sum_j w) + bQ^2
//   var dk = ulp(dk)^2/12 + sum_i (v + s^2 (x + dS^2 eS^2 + P^2 sum_k x_k + dS^2 sum_k w_k)) Q^2 + bK^2
// Options of the scores (problem.hpp), in fp32; J = 1 - tanh^2(s q.k / c), else 1. A is replaced by what follows:
//   softcap:  A J + 4 |S| / k        the products' error through tanh, and tanh's own
//   alibi:    A + (2 |bias| + |S|) / k
// dS = P (dP - D) J everywhere; where D's error or an allowance multiplies P, it multiplies P J; and
//   softcap:  hS^2/3 + dS^2 eS^2 gains P^2 (dP - D)^2 eJ^2,  eJ = e (4 + 2 k A J |tanh| / c)    error of J
// A sink is a term of l and of L; nothing else changes. An empty row that is uniform has S = 0 and no sink, yet its dS goes
// through softcap's J.
// Eager computes options in fp32 between the rounded T = s q.k and the softmax; S' = dS/dT, 0 in an empty row. vS = S'^2 vT, and
// with softcap a T moves J too: x = 3 (r^2 (J S' + dJ/dT)^2 vT + (P J)^2 vdP), r = P (dP - D), P J in place of P on dq and dk.
//
// Dropout, M = kept / (1 - p) of the kernel's own mask, in fp32 before P is rounded: what is stored is P M, so that
//   hP = max(u P M, f / l), hB = max(u P M, f), 0 where M is;  D's part of sD2 by hP is (hP dO.v)^2
//   var o: M V in place of V beside the errors of S;  var dv: (P M)^2 in place of P^2
//   dP = M o dO.v everywhere, where eager rounds dO.v, and M sqrt(sum_x dO^2 v^2) in edP
//   dS = -P D of a key that is left out; equal P make them equal, so that all go to one side of a tie. Eager's var dq has, over
//   those keys, max(sum_j v K^2, (sum_j sqrt(v) K)^2) in place of sum_j v K^2
// That 1 / (1 - p) is a number of fp32 is an error that is the same in all of a tensor: verdict_gates.hpp.
//
// GQA: + ulp(partial)^2/12 for each head's dk and dv where the profile rounds partials.
//
// fp32 rounds nothing on the way, so its own accumulation is no longer hidden below an output ulp. A sum of n terms makes
// n roundings of at most e times the partial sum, whose square is at most about (sum)^2 + sum of the squared terms:
//   var += n e^2 (x^2 + sum of squared terms)   on o, dv, dq, dk;   and eL = sL, as P is recomputed from an L that wrong.
// Measured with LibTorch's fp32 kernels on a CPU (flash and math, lengths 1 to 512, all fills): without this term 47 of 360
// verdicts were false alarms, o up to 4.6 times its z limit; with it 0 of 800, the largest z at 0.38 of its limit.
//
// fp32 arithmetic may take a subnormal P or dS for 0, in every profile: var += c^2/3 for each visible key, weighted as hP (by
// (M V)^2: a dropout lifts what is lost), hB and hS are, c = 2^-126 for P and 2^-120 for dS (a flushed P is multiplied by dP - D,
// here at most 64).
#pragma once

#include "harness/run/declaration.hpp"

namespace attnbench {

/// Variances of a P, and of a dS, that fp32 arithmetic may have flushed to 0.
inline constexpr double kFlushedP2 = 0x1p-252 / 3, kFlushedDs2 = 0x1p-240 / 3;

/// A profile resolved for one dtype and head dim: what rounds, and by how much.
struct Rounding {
  Dtype dtype = Dtype::bf16;
  double u = 0, f = 0;             ///< as above
  double e = 0;                    ///< 2^-24
  double k_scores = 0;             ///< 2 + d/16: Q K^T
  double k_dp = 0;                 ///< 2 + dv/16: dO V^T
  double accumulation = 0;         ///< e^2 in fp32, else 0 (hidden below an output ulp)
  bool p = false;                  ///< P is rounded before P V
  bool p_normalised = false;       ///< … after it was normalised
  bool ds = false;                 ///< dS, and P for P^T dO, are rounded
  bool ds_from_rounded_p = false;  ///< … and dS is computed from that P
  bool scales_ds = false;          ///< s dS is what is rounded; false where it makes no difference: f is 0, or s
  double f_ds = 0;                 ///< f of a dS: f / |s| where s dS is rounded
  bool scores = false;             ///< eager: S, s S, dP and s dS are rounded too, and all of it is replayed
  bool d_from_output = false;      ///< D from the rounded O; else from P o dP
  bool gqa_partials = false;       ///< each head's dK and dV are rounded before they are summed

  /// Gradients are judged given the kernel's own O.
  bool conditional() const { return d_from_output; }

  bool operator==(const Rounding&) const = default;
};

/// fp32 switches every rounding point of the profile off.
Rounding rounding_of(const Profile& profile, const Problem& problem);

/// Distance between neighbours of the dtype at x. bf16 and fp32: not below 2^-126, as fp32 arithmetic may flush
/// subnormals to zero.
double ulp(Dtype dtype, double x);

/// ulp(x)^2/12: variance of rounding x to the dtype.
double rounding_variance(Dtype dtype, double x);

}  // namespace attnbench
