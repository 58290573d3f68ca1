#include "tessera/core/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/stop.h"
#include "tessera/core/check.h"

namespace tessera {
namespace {

TEST(ThreadPool, EveryItemOnceWithAValidWorker) {
  for (const int num_threads : {1, 2, 3, 8}) {
    ThreadPool pool(num_threads);
    ASSERT_EQ(pool.num_threads(), num_threads);
    for (const int64_t num_items : {0, 1, 2, 7, 8, 9, 1000}) {
      std::vector<std::atomic<int>> visits(static_cast<size_t>(num_items));
      pool.run(num_items, [&](int64_t item, int worker) {
        ASSERT_TRUE(worker >= 0 && worker < num_threads) << worker;
        ++visits[static_cast<size_t>(item)];
      });
      for (const auto& count : visits) ASSERT_EQ(count.load(), 1) << num_threads << " threads, " << num_items;
    }
  }
}

TEST(ThreadPool, WorkersRunAtTheSameTime) {
  ThreadPool pool(3);
  std::atomic<int> num_waiting{0};
  std::mutex mutex;
  std::set<int> workers;
  std::set<std::thread::id> threads;
  pool.run(3, [&](int64_t, int worker) {
    ++num_waiting;
    while (num_waiting < 3) std::this_thread::yield();  // each of the three holds one worker until all have come
    const std::lock_guard lock(mutex);
    workers.insert(worker);
    threads.insert(std::this_thread::get_id());
  });
  EXPECT_EQ(workers, (std::set<int>{0, 1, 2}));
  EXPECT_EQ(threads.size(), 3u);
  EXPECT_TRUE(threads.contains(std::this_thread::get_id()));
}

TEST(ThreadPool, TheCallersFlagStopsTheRunAndThePoolGoesOn) {
  for (const int num_threads : {1, 4}) {
    ThreadPool pool(num_threads);
    int32_t flag = 0;
    for (int round = 0; round < 20; ++round) {
      __atomic_store_n(&flag, 0, __ATOMIC_RELAXED);
      const StopScope scope(&flag);
      std::atomic<int64_t> num_done{0};
      const auto body = [&](int64_t item, int) {
        if (item == 100) __atomic_store_n(&flag, 1, __ATOMIC_RELAXED);
        ++num_done;
      };
      EXPECT_THROW(pool.run(1'000'000, body), Stopped);
      EXPECT_GE(num_done.load(), 1);
      EXPECT_LT(num_done.load(), 1'000'000);
    }
    std::atomic<int64_t> num_done{0};  // outside the scope nobody looks at the flag any more
    pool.run(1000, [&](int64_t, int) { ++num_done; });
    EXPECT_EQ(num_done.load(), 1000);
    EXPECT_NO_THROW(throw_if_stopped());
  }
}

TEST(ThreadPool, AnotherThreadsFlagStopsNothing) {
  const int32_t flag = 1;
  ThreadPool pool(3);
  std::thread([&] {
    const StopScope scope(&flag);
    EXPECT_THROW(throw_if_stopped(), Stopped);
    EXPECT_THROW(pool.run(10, [](int64_t, int) {}), Stopped);
    const StopScope inner(nullptr);
    EXPECT_NO_THROW(pool.run(10, [](int64_t, int) {}));
  }).join();
  EXPECT_NO_THROW(pool.run(10, [](int64_t, int) { throw_if_stopped(); }));
}

TEST(ThreadPool, AnExceptionStopsTheRunAndThePoolGoesOn) {
  for (const int num_threads : {1, 4}) {
    ThreadPool pool(num_threads);
    for (int round = 0; round < 50; ++round) {
      std::atomic<int64_t> num_done{0};
      try {
        pool.run(1'000'000, [&](int64_t item, int) {
          if (item == 5) throw std::runtime_error("item 5");
          ++num_done;
        });
        FAIL() << "nothing was thrown";
      } catch (const std::runtime_error& error) {
        ASSERT_STREQ(error.what(), "item 5");
      }
      ASSERT_LT(num_done.load(), 999'999);
      std::atomic<int64_t> sum{0};
      pool.run(10, [&](int64_t item, int) { sum += item; });
      ASSERT_EQ(sum.load(), 45);
    }
  }
}

TEST(ThreadPool, WhenAllThrowOneIsReported) {
  ThreadPool pool(4);
  EXPECT_THROW(pool.run(100, [](int64_t, int) { throw std::out_of_range("each"); }), std::out_of_range);
}

TEST(ThreadPool, WritesOfTheItemsAreSeenAfterTheRun) {
  ThreadPool pool(4);
  std::vector<int64_t> values(10'000);
  for (int round = 0; round < 100; ++round) {
    pool.run(10'000, [&](int64_t item, int) { values[static_cast<size_t>(item)] += item; });
  }
  for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], static_cast<int64_t>(100 * i));
}

TEST(ThreadPool, BrokenContractsAreReported) {
  EXPECT_THROW(ThreadPool(0), ProgrammerError);
  ThreadPool pool(2);
  EXPECT_THROW(pool.run(-1, [](int64_t, int) {}), ProgrammerError);
  EXPECT_THROW(pool.run(1, [&](int64_t, int) { pool.run(1, [](int64_t, int) {}); }), ProgrammerError);
}

/// Forks; the child gives up root, may have `limit` processes, and ends with what `body` returns.
template <class Body>
int exit_code_with_process_limit(rlim_t limit, const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    // One that has no process of its own, another than that of a test run beside this one.
    const auto some_user = static_cast<uid_t>(20'000 + getpid() % 40'000);
    const rlimit processes{.rlim_cur = limit, .rlim_max = limit};
    const bool is_limited = setuid(some_user) == 0 && setrlimit(RLIMIT_NPROC, &processes) == 0;
    _exit(is_limited ? body() : 77);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST(ThreadPool, HasFewerThreadsWhereTheSystemAllowsFewer) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root, to be a user without other processes";
  for (const int limit : {1, 3, 6}) {
    const int code = exit_code_with_process_limit(static_cast<rlim_t>(limit), [limit] {
      ThreadPool pool(8);
      std::atomic<int> sum = 0;
      pool.run(100, [&](int64_t item, int) { sum += static_cast<int>(item); });
      return sum == 4950 && pool.num_threads() == limit ? 0 : 1;
    });
    EXPECT_EQ(code, 0) << limit;
  }
}

TEST(ThreadPool, AvailableProcessorsIsTheAffinityMask) {
  EXPECT_GE(available_processors(), 1);
  EXPECT_LE(available_processors(), static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace
}  // namespace tessera
