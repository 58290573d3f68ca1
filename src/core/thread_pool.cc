#include "tessera/core/thread_pool.h"

#include <sched.h>

#include <system_error>

#include "core/stop.h"
#include "tessera/core/check.h"

namespace tessera {

int available_processors() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  static_assert(kMaxThreads == CPU_SETSIZE);
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0 && CPU_COUNT(&mask) > 0) return CPU_COUNT(&mask);
  const unsigned count = std::thread::hardware_concurrency();
  return count > 0 ? static_cast<int>(count) : 1;
}

ThreadPool::ThreadPool(int num_threads) {
  TESSERA_CHECK(num_threads >= 1, num_threads);
  threads_.reserve(static_cast<size_t>(num_threads) - 1);
  try {
    for (int worker = 1; worker < num_threads; ++worker) {
      threads_.emplace_back([this, worker] { serve(worker); });
    }
  } catch (const std::system_error&) {
    // A container or a user may have no more processes: the items are the same, whoever takes them.
  } catch (...) {
    join();
    throw;
  }
}

ThreadPool::~ThreadPool() { join(); }

void ThreadPool::join() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_ready_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run(int64_t num_items, const Body& body) {
  TESSERA_CHECK(num_items >= 0, num_items);
  if (num_items == 0) return;
  {
    const std::lock_guard lock(mutex_);
    TESSERA_CHECK(body_ == nullptr, "a run is already under way");
    body_ = &body;
    stop_ = current_stop();
    num_items_ = num_items;
    next_item_.store(0, std::memory_order_relaxed);
    first_error_ = nullptr;
    num_busy_ = static_cast<int>(threads_.size());
    ++generation_;
  }
  work_ready_.notify_all();
  take_items(0);
  std::exception_ptr error;
  {
    std::unique_lock lock(mutex_);
    work_done_.wait(lock, [this] { return num_busy_ == 0; });
    body_ = nullptr;
    error = first_error_;
  }
  if (error) std::rethrow_exception(error);
}

void ThreadPool::serve(int worker) {
  uint64_t seen = 0;
  while (true) {
    const int32_t* stop = nullptr;
    {
      std::unique_lock lock(mutex_);
      work_ready_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
      stop = stop_;
    }
    {
      const StopScope scope(stop);
      take_items(worker);
    }
    const std::lock_guard lock(mutex_);
    if (--num_busy_ == 0) work_done_.notify_one();
  }
}

void ThreadPool::take_items(int worker) {
  try {
    while (true) {
      const int64_t item = next_item_.fetch_add(1, std::memory_order_relaxed);
      if (item >= num_items_) return;
      throw_if_stopped();
      (*body_)(item, worker);
    }
  } catch (...) {
    const std::lock_guard lock(mutex_);
    if (!first_error_) first_error_ = std::current_exception();
    next_item_.store(num_items_, std::memory_order_relaxed);  // nobody starts another item
  }
}

}  // namespace tessera
