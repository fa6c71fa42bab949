#include "pool.h"

#include <immintrin.h>

namespace {

// Some microseconds of spinning at a barrier, where the others are known to be on their way, and more between steps,
// which covers what the engine does in between.
constexpr int kBarrierSpins = 600;
constexpr int kRunSpins = 1500;

// Returns once the value is no longer `old`.
void await_change(const std::atomic<uint32_t>& value, uint32_t old, int spins) {
  for (int i = 0; i < spins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    _mm_pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

Pool::Pool(int num_threads) : num_threads_(num_threads) {
  try {
    for (int thread = 1; thread < num_threads; ++thread) threads_.emplace_back([this, thread] { work(thread); });
  } catch (...) {  // no more threads are allowed; those that run must end before their vector does
    end();
    throw;
  }
}

Pool::~Pool() { end(); }

void Pool::end() {
  is_ending_ = true;
  runs_.fetch_add(1, std::memory_order_release);
  runs_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Pool::run(const std::function<void(int)>& body) {
  body_ = &body;
  runs_.fetch_add(1, std::memory_order_release);
  runs_.notify_all();
  body(0);
  barrier();
}

void Pool::work(int thread) {
  for (uint32_t seen = 0;; ++seen) {
    await_change(runs_, seen, kRunSpins);
    if (is_ending_) return;
    (*body_)(thread);
    barrier();
  }
}

void Pool::barrier() {
  const uint32_t passed = barriers_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(num_threads_)) {
    arrived_.store(0, std::memory_order_relaxed);
    barriers_.fetch_add(1, std::memory_order_release);
    barriers_.notify_all();
    return;
  }
  await_change(barriers_, passed, kBarrierSpins);
}
