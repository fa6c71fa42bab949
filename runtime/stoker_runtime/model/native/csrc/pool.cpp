#include "pool.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>

namespace {

// Some microseconds of spinning at a barrier, where the others are known to be on their way, and more between steps,
// which covers what the engine does in between.
constexpr int kBarrierSpins = 600;
constexpr int kRunSpins = 1500;

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "the kernel sees the number alone");

// struct sched_attr of the kernel's first version, which libraries of C do not declare everywhere.
struct SchedulingAttributes {
  uint32_t size;
  uint32_t policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime;  // ns; of a normal thread: how long it wants to run without a break
  uint64_t deadline;
  uint64_t period;
};

constexpr uint64_t kLongSlice = 100'000'000;  // the longest that the kernel grants

// Ask for long time slices, which makes the calling thread give way at once to whoever wakes up and asks for a usual
// one (Linux 6.12 and later; others take no notice). A step hands tokens to the server, which needs a core for a
// fraction of a millisecond; without this it waits for the slice of a computing thread to end, some 5 ms. Shares of
// the CPU stay as they are.
void ask_for_long_slices() {
  SchedulingAttributes attributes{};
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return;
  if (attributes.policy != SCHED_OTHER) return;
  attributes.runtime = kLongSlice;
  syscall(SYS_sched_setattr, 0, &attributes, 0);
}

}  // namespace

void Signal::advance() {
  value_.fetch_add(1);
  if (num_sleepers_.load() > 0) syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

void Signal::await_change(uint32_t old, int spins) {
  for (int i = 0; i < spins; ++i) {
    if (value_.load(std::memory_order_acquire) != old) return;
    _mm_pause();
  }
  num_sleepers_.fetch_add(1);
  while (value_.load() == old) syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
  num_sleepers_.fetch_sub(1);
}

Pool::Pool(int num_threads) : num_threads_(num_threads), cores_(new std::atomic<int>[num_threads]) {
  for (int thread = 0; thread < num_threads; ++thread) cores_[thread] = -1;
  ask_for_long_slices();  // the caller's thread, which computes as well
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
  runs_.advance();
  for (std::thread& thread : threads_) thread.join();
}

void Pool::run(const Body& body) {
  body_ = &body;
  cores_[0].store(sched_getcpu(), std::memory_order_relaxed);
  runs_.advance();
  body(0);
  barrier();
}

void Pool::work(int thread) {
  ask_for_long_slices();
  for (uint32_t seen = 0;; ++seen) {
    runs_.await_change(seen, kRunSpins);
    if (is_ending_) return;
    spread(thread);
    (*body_)(thread);
    barrier();
  }
}

// Leave a core on which another thread of the pool runs. The kernel may not see that they are in each other's way: at
// the barriers one sleeps while the other runs, so the core never has two to choose from, and steps take twice as long
// for seconds. Nobody is bound to a core for longer than it takes to move, so neighbours can still be made way for.
void Pool::spread(int thread) {
  const int core = sched_getcpu();
  cores_[thread].store(core, std::memory_order_relaxed);
  bool is_shared = false;
  for (int other = 0; other < thread; ++other) is_shared |= cores_[other].load(std::memory_order_relaxed) == core;
  cpu_set_t allowed;
  if (!is_shared || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  cpu_set_t free = allowed;
  for (int other = 0; other < num_threads_; ++other) {
    const int taken = cores_[other].load(std::memory_order_relaxed);
    if (taken >= 0) CPU_CLR(taken, &free);
  }
  if (CPU_COUNT(&free) == 0 || sched_setaffinity(0, sizeof free, &free) != 0) return;
  cores_[thread].store(sched_getcpu(), std::memory_order_relaxed);
  sched_setaffinity(0, sizeof allowed, &allowed);
}

void Pool::barrier() {
  const uint32_t passed = barriers_.value();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(num_threads_)) {
    arrived_.store(0, std::memory_order_relaxed);
    barriers_.advance();
    return;
  }
  barriers_.await_change(passed, kBarrierSpins);
}
