#include "classifier/engine_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

namespace tessera::classifier {
namespace {

constexpr auto kSettle = std::chrono::milliseconds(30);

TEST(BoundedQueue, keeps_order_and_counts_records) {
  BoundedQueue<int> queue(100, 1000);
  EXPECT_TRUE(queue.push(1, 10, 20));
  EXPECT_TRUE(queue.push(2, 5, 20));
  EXPECT_EQ(queue.num_records(), 15);
  EXPECT_EQ(queue.pop(), 1);
  EXPECT_EQ(queue.num_records(), 5);
  EXPECT_EQ(queue.pop(), 2);
  EXPECT_EQ(queue.num_records(), 0);
}

/// Whether a second push of (records, bytes) waits until the first is popped.
void expect_second_push_waits(int64_t records, int64_t bytes) {
  BoundedQueue<int> queue(10, 100);
  ASSERT_TRUE(queue.push(1, 6, 60));
  std::atomic<bool> pushed{false};
  std::jthread pusher([&] { pushed = queue.push(2, records, bytes); });
  std::this_thread::sleep_for(kSettle);
  EXPECT_FALSE(pushed);
  EXPECT_EQ(queue.pop(), 1);
  pusher.join();
  EXPECT_TRUE(pushed);
  EXPECT_EQ(queue.pop(), 2);
}

TEST(BoundedQueue, waits_when_records_are_full) { expect_second_push_waits(5, 1); }
TEST(BoundedQueue, waits_when_bytes_are_full) { expect_second_push_waits(1, 41); }

TEST(BoundedQueue, lets_in_exactly_what_fits) {
  BoundedQueue<int> queue(10, 100);
  EXPECT_TRUE(queue.push(1, 6, 60));
  EXPECT_TRUE(queue.push(2, 4, 40));
  EXPECT_EQ(queue.num_records(), 10);
}

TEST(BoundedQueue, lets_one_item_in_that_is_larger_than_the_limits) {
  BoundedQueue<int> queue(10, 100);
  EXPECT_TRUE(queue.push(1, 1000, 100000));
  EXPECT_EQ(queue.pop(), 1);
}

TEST(BoundedQueue, finish_lets_what_is_queued_out_and_nothing_in) {
  BoundedQueue<int> queue(10, 100);
  EXPECT_TRUE(queue.push(1, 1, 1));
  queue.finish();
  EXPECT_FALSE(queue.push(2, 1, 1));
  EXPECT_EQ(queue.pop(), 1);
  queue.done();
  EXPECT_EQ(queue.pop(), std::nullopt);
}

TEST(BoundedQueue, what_is_put_back_comes_first_and_counts_again) {
  BoundedQueue<int> queue(10, 100);
  ASSERT_TRUE(queue.push(1, 6, 60));
  ASSERT_TRUE(queue.push(2, 4, 40));
  ASSERT_EQ(queue.pop(), 1);
  ASSERT_TRUE(queue.push(3, 6, 60));
  queue.put_back(1, 6, 60);  // beyond the limits: it was let in once
  EXPECT_EQ(queue.num_records(), 16);
  EXPECT_EQ(queue.pop(), 1);
  EXPECT_EQ(queue.pop(), 2);
  EXPECT_EQ(queue.pop(), 3);
}

TEST(BoundedQueue, pop_waits_for_what_may_still_be_put_back) {
  BoundedQueue<int> queue(10, 100);
  ASSERT_TRUE(queue.push(1, 1, 1));
  ASSERT_EQ(queue.pop(), 1);
  queue.finish();
  std::atomic<bool> ended{false};
  std::jthread other([&] {
    EXPECT_EQ(queue.pop(), 1);
    queue.done();
    EXPECT_EQ(queue.pop(), std::nullopt);
    ended = true;
  });
  std::this_thread::sleep_for(kSettle);
  EXPECT_FALSE(ended);
  queue.put_back(1, 1, 1);
  other.join();
  EXPECT_TRUE(ended);
}

TEST(BoundedQueue, done_ends_those_who_wait) {
  BoundedQueue<int> queue(10, 100);
  ASSERT_TRUE(queue.push(1, 1, 1));
  ASSERT_EQ(queue.pop(), 1);
  queue.finish();
  std::jthread other([&] { EXPECT_EQ(queue.pop(), std::nullopt); });
  std::this_thread::sleep_for(kSettle);
  queue.done();
}

TEST(BoundedQueue, nothing_can_be_put_back_after_cancel) {
  BoundedQueue<int> queue(10, 100);
  ASSERT_TRUE(queue.push(1, 1, 1));
  ASSERT_EQ(queue.pop(), 1);
  queue.cancel();
  EXPECT_EQ(queue.pop(), std::nullopt) << "the item in work does not hold anybody";
  queue.put_back(1, 1, 1);
  EXPECT_EQ(queue.pop(), std::nullopt);
  EXPECT_EQ(queue.num_records(), 0);
}

TEST(BoundedQueue, more_done_than_popped_is_a_programming_error) {
  BoundedQueue<int> queue(10, 100);
  EXPECT_THROW(queue.done(), ProgrammerError);
  EXPECT_THROW(queue.put_back(1, 1, 1), ProgrammerError);
}

TEST(BoundedQueue, cancel_drops_counts_and_wakes_both_sides) {
  BoundedQueue<int> full(10, 100);
  ASSERT_TRUE(full.push(1, 7, 1));
  std::atomic<int> result{-1};
  std::jthread pusher([&] { result = full.push(2, 7, 1) ? 1 : 0; });
  std::this_thread::sleep_for(kSettle);
  EXPECT_EQ(full.cancel(), 7);
  pusher.join();
  EXPECT_EQ(result, 0);
  EXPECT_EQ(full.pop(), std::nullopt);

  BoundedQueue<int> empty(10, 100);
  std::jthread popper([&] { EXPECT_EQ(empty.pop(), std::nullopt); });
  std::this_thread::sleep_for(kSettle);
  EXPECT_EQ(empty.cancel(), 0);
}

TEST(BoundedQueue, holds_items_that_only_move) {
  BoundedQueue<std::unique_ptr<int>> queue(10, 100);
  EXPECT_TRUE(queue.push(std::make_unique<int>(5), 1, 1));
  EXPECT_EQ(**queue.pop(), 5);
}

TEST(BoundedQueue, many_threads_each_item_once) {
  constexpr int kItems = 2000;
  BoundedQueue<int> queue(8, 1 << 20);
  std::vector<std::atomic<int>> seen(kItems);
  {
    std::vector<std::jthread> poppers;
    for (int t = 0; t < 4; ++t) {
      poppers.emplace_back([&] {
        while (const auto item = queue.pop()) {
          ++seen[static_cast<size_t>(*item)];
          queue.done();
        }
      });
    }
    for (int i = 0; i < kItems; ++i) {
      ASSERT_TRUE(queue.push(i, 1 + i % 3, 1));
      ASSERT_LE(queue.num_records(), 8);
    }
    queue.finish();
  }
  for (const auto& count : seen) EXPECT_EQ(count, 1);
}

TEST(BoundedQueue, limits_of_nothing_are_a_programming_error) {
  EXPECT_THROW(BoundedQueue<int>(0, 1), ProgrammerError);
  EXPECT_THROW(BoundedQueue<int>(1, 0), ProgrammerError);
  BoundedQueue<int> queue(1, 1);
  EXPECT_THROW(queue.push(1, -1, 0), ProgrammerError);
}

}  // namespace
}  // namespace tessera::classifier
