// Races on a GPU: who reads an input on another stream without waiting for the one on which it is written is caught, and who
// waits is not.
#include <chrono>
#include <limits>
#include <memory>

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>

#include "harness/attention/emulator.hpp"
#include "harness/worker/cuda_device.hpp"
#include "harness/worker/gpu_load.hpp"
#include "harness/worker/memory.hpp"
#include "harness/worker/test_run_case.hpp"

namespace attnbench {
namespace {

using testing::StartsWith;

const Device& race_gpu() {
  static const Device device = [] {
    const Device found = find_cuda_device(0);
    watch_cuda_memory();
    return found;
  }();
  return device;
}

c10::cuda::CUDAStream pool_stream() {
  return c10::cuda::getStreamFromPool(false, static_cast<c10::DeviceIndex>(race_gpu().index));
}

/// What is queued on `later` from now on comes behind what is queued on `first`.
void put_behind(const c10::cuda::CUDAStream& first, const c10::cuda::CUDAStream& later) {
  cudaEvent_t event = nullptr;
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, first.stream()), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(later.stream(), event, 0), cudaSuccess);
  ASSERT_EQ(cudaEventDestroy(event), cudaSuccess);
}

/// The emulator, on a copy of V (forward) or dO (backward) that another stream makes. The current stream always waits for the
/// copy; the copy waits for the current stream in as many calls as it is told.
class CopiesElsewhere final : public Backend {
 public:
  CopiesElsewhere(const std::string& name, const c10::cuda::CUDAStream& elsewhere, int waits_for)
      : declaration_(fake_declaration(name)), elsewhere_(elsewhere), waits_for_(waits_for) {
    declaration_.capabilities.devices = {"cuda"};
  }
  const Declaration& declaration() const override { return declaration_; }

  Run prepare(const Case& c, const Inputs& inputs, Pass) const override {
    const auto calls = std::make_shared<int>(0);
    const at::Tensor v = at::empty(inputs.v.sizes(), inputs.v.options()),
                     dout = at::empty(inputs.dout.sizes(), inputs.q.options());
    check_context(race_gpu());  // the memory of the copies is ready
    const auto compute = [this, c, &inputs, calls](at::Tensor Inputs::*tensor, const at::Tensor& copy) {
      Inputs copied = inputs;
      copied.*tensor = copy;
      make_copy(inputs.*tensor, copy, ++*calls <= waits_for_);
      return emulate(c, copied, declaration_.profile, declaration_.conventions.empty_row);
    };
    Run run;
    run.profile = declaration_.profile;
    run.windows = {{"op",
                    [compute, v] {
                      const Outputs all = compute(&Inputs::v, v);
                      return Outputs{all.o, all.lse, {}, {}, {}};
                    },
                    [compute, dout] {
                      const Outputs all = compute(&Inputs::dout, dout);
                      return Outputs{{}, {}, all.dq, all.dk, all.dv};
                    },
                    nullptr}};
    return run;
  }

 private:
  void make_copy(const at::Tensor& from, at::Tensor to, bool waits) const {
    const c10::cuda::CUDAStream current = c10::cuda::getCurrentCUDAStream();
    if (waits) put_behind(current, elsewhere_);
    {
      const c10::cuda::CUDAStreamGuard guard(elsewhere_);
      to.copy_(from);
    }
    put_behind(elsewhere_, current);
  }

  Declaration declaration_;
  const c10::cuda::CUDAStream elsewhere_;
  const int waits_for_;
};

class CudaRace : public RunCase {
 protected:
  void SetUp() override { bench.device = race_gpu(); }
  void add_copier(const std::string& name, const c10::cuda::CUDAStream& elsewhere, int waits_for) {
    bench.backends.push_back(std::make_unique<CopiesElsewhere>(name, elsewhere, waits_for));
  }
};
constexpr char kRace[] = "attention b=3 hq=4 hkv=2 lq=70 d=64 dtype=bf16 mask=causal # repeats=25 timed=no";

TEST_F(CudaRace, WhoReadsWithoutWaitingIsCaughtByTheLateProducer) {
  constexpr int kJudgedCalls = 4;  // forward and backward, as they are and mirrored
  add_copier("waits", pool_stream(), std::numeric_limits<int>::max());
  add_copier("stops to wait", pool_stream(), kJudgedCalls);
  add_copier("uses the default stream", c10::cuda::getDefaultCUDAStream(), 0);
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const Answers answers = run(pass, kRace);
    EXPECT_EQ(answers.records.at(0).status, Status::passed) << answers.records.at(0).reason;
    EXPECT_EQ(answers.records.at(0).invariance.at(0).compared, 25);
    for (const size_t flawed : {1, 2}) {
      const Record& r = answers.records.at(flawed);
      EXPECT_EQ(r.status, Status::failed) << r.backend;
      EXPECT_THAT(r.reason, StartsWith("repeat ")) << r.backend;
    }
  }
}

TEST_F(CudaRace, AnAuditUnderLoadKeepsWhatIsDeterministic) {
  add_copier("waits", pool_stream(), std::numeric_limits<int>::max());
  Request request{7, kRace, {{"waits", Pass::forward}, {"waits", Pass::backward}}, true};
  request.audit_repeats = 10;
  for (const Record& r : run(request).records) {
    EXPECT_EQ(r.status, Status::passed) << r.reason;
    for (const Invariance& i : r.invariance) {
      const bool promised = i.relation == Relation::repeats || i.relation == Relation::concurrency;
      EXPECT_EQ(i.promised, promised) << name_of(i.relation);
      EXPECT_TRUE(!promised || i.outcome == Invariance::Outcome::equal) << name_of(i.relation) << ": " << sentence_of(i);
    }
  }
}

TEST(GpuLoad, ADelayedStreamIsLateAndTheLoadEnds) {
  race_gpu();
  const c10::cuda::CUDAStream stream = pool_stream();
  GpuLoad load;
  load.top_up();
  load.top_up();
  delay_gpu_stream(stream.stream(), 1);  // what it launches is loaded
  stream.synchronize();
  const auto begin = std::chrono::steady_clock::now();
  delay_gpu_stream(stream.stream(), 2000);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(2)) << "it returns at once";
  stream.synchronize();
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::microseconds(1900));
}

/// Guards are looked at in the order of the stream on which the memory is given away again: on another one, bands of a block that
/// is gone would be mended in the data of the next.
TEST(CudaMemoryOnAStream, ReusedBlocksKeepTheirDataAndNoOverrunIsSeen) {
  race_gpu();
  const c10::cuda::CUDAStreamGuard guard(pool_stream());
  const MemoryScope checked(MemoryMode::checked);
  take_overruns();
  const auto options = at::TensorOptions().dtype(at::kFloat).device(at::kCUDA, static_cast<c10::DeviceIndex>(race_gpu().index));
  for (int i = 0; i < 2000; ++i) {
    const at::Tensor t = at::full({1000 + 977 * (i % 50)}, 3.0, options);
    const bool intact = i % 100 != 0 || (t == 3.0).all().item<bool>();
    ASSERT_TRUE(intact) << i;
  }
  EXPECT_TRUE(take_overruns().empty());
}

}  // namespace
}  // namespace attnbench
