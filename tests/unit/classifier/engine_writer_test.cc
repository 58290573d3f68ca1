#include "classifier/engine_writer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tessera/core/check.h"
#include "unit/classifier/engine_fakes.h"

namespace tessera::classifier {
namespace {

using testing::FakeSink;

class OrderedWriterTest : public ::testing::Test {
 protected:
  /// `num_records` records from `first_index` with logits [0, index].
  LabelledBatch batch(int64_t sequence, int64_t first_index, int64_t num_records) const {
    LabelledBatch out;
    out.sequence = sequence;
    out.first_index = first_index;
    out.num_records = out.num_done = num_records;
    out.errors.resize(static_cast<size_t>(num_records));
    out.logits = Buffer<float>(static_cast<size_t>(2 * num_records));
    for (int64_t i = 0; i < num_records; ++i) {
      out.logits[static_cast<size_t>(2 * i)] = 0;
      out.logits[static_cast<size_t>(2 * i + 1)] = static_cast<float>(first_index + i);
    }
    return out;
  }

  std::shared_ptr<const Model> model_ = testing::make_model();
  FakeSink sink_;
};

TEST_F(OrderedWriterTest, restores_the_order) {
  OrderedWriter writer(model_->config, sink_, 4);
  EXPECT_TRUE(writer.put(batch(2, 5, 2)));
  EXPECT_TRUE(writer.put(batch(0, 0, 3)));
  EXPECT_TRUE(writer.put(batch(1, 3, 2)));
  writer.finish();
  writer.run();
  ASSERT_EQ(sink_.kept.size(), 7u);
  for (size_t i = 0; i < 7; ++i) EXPECT_EQ(sink_.kept[i].index, static_cast<int64_t>(i));
  EXPECT_EQ(sink_.ends, (std::vector<int64_t>{3, 5, 7}));
  EXPECT_EQ(writer.statistics().num_ok, 7);
}

TEST_F(OrderedWriterTest, label_is_the_largest_logit_the_first_of_equal_ones) {
  OrderedWriter writer(model_->config, sink_, 4);
  writer.put(batch(0, 0, 2));
  writer.finish();
  writer.run();
  EXPECT_EQ(sink_.kept[0].label_idx, 0);
  EXPECT_FLOAT_EQ(sink_.kept[0].probability, 0.5f);
  EXPECT_EQ(sink_.kept[1].label_idx, 1);
  EXPECT_FLOAT_EQ(sink_.kept[1].probability, 0.7310586f);  // 1 / (1 + e^-1)
}

TEST_F(OrderedWriterTest, probability_survives_huge_logits) {
  OrderedWriter writer(model_->config, sink_, 4);
  LabelledBatch huge = batch(0, 0, 1);
  huge.logits[0] = 3e38f;
  huge.logits[1] = -3e38f;
  writer.put(std::move(huge));
  writer.finish();
  writer.run();
  EXPECT_EQ(sink_.kept[0].probability, 1.0f);
}

TEST_F(OrderedWriterTest, a_batch_that_never_comes_is_found) {
  OrderedWriter writer(model_->config, sink_, 4);
  writer.put(batch(0, 0, 3));
  writer.put(batch(2, 5, 2));
  writer.finish();
  EXPECT_THROW(writer.run(), ProgrammerError);
  EXPECT_EQ(sink_.kept.size(), 3u);
}

TEST_F(OrderedWriterTest, a_batch_that_comes_twice_is_found) {
  OrderedWriter writer(model_->config, sink_, 4);
  writer.put(batch(1, 3, 3));
  EXPECT_THROW(writer.put(batch(1, 3, 3)), ProgrammerError);
}

TEST_F(OrderedWriterTest, an_index_left_out_or_repeated_is_found) {
  for (const int64_t wrong : {2, 4}) {
    OrderedWriter writer(model_->config, sink_, 4);
    writer.put(batch(0, 0, 3));
    writer.put(batch(1, wrong, 3));
    writer.finish();
    EXPECT_THROW(writer.run(), ProgrammerError) << wrong;
  }
}

TEST_F(OrderedWriterTest, pending_batches_are_bounded_and_the_due_one_always_enters) {
  OrderedWriter writer(model_->config, sink_, 2);
  ASSERT_TRUE(writer.put(batch(1, 1, 1)));
  ASSERT_TRUE(writer.put(batch(2, 2, 1)));
  std::atomic<bool> entered{false};
  std::jthread ahead([&] { entered = writer.put(batch(3, 3, 1)); });
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_FALSE(entered);
  ASSERT_TRUE(writer.put(batch(0, 0, 1)));
  std::jthread runner([&] { writer.run(); });
  ahead.join();
  writer.finish();
  runner.join();
  EXPECT_EQ(sink_.kept.size(), 4u);
}

TEST_F(OrderedWriterTest, a_cut_batch_ends_the_output) {
  OrderedWriter writer(model_->config, sink_, 4);
  LabelledBatch cut = batch(1, 3, 4);
  cut.num_done = 1;
  writer.put(batch(2, 7, 2));
  writer.put(std::move(cut));
  writer.put(batch(0, 0, 3));
  writer.finish();
  writer.run();
  ASSERT_EQ(sink_.kept.size(), 4u);
  EXPECT_EQ(sink_.kept.back().index, 3);
  EXPECT_EQ(writer.num_discarded(), 5);
}

TEST_F(OrderedWriterTest, cancel_wakes_a_waiting_writer_and_worker) {
  OrderedWriter writer(model_->config, sink_, 1);
  ASSERT_TRUE(writer.put(batch(1, 1, 1)));
  std::jthread runner([&] { writer.run(); });
  std::jthread worker([&] { EXPECT_FALSE(writer.put(batch(2, 2, 1))); });
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  writer.cancel();
  runner.join();
  worker.join();
  EXPECT_TRUE(sink_.kept.empty());
}

TEST_F(OrderedWriterTest, failures_are_all_counted_and_the_first_are_listed) {
  OrderedWriter writer(model_->config, sink_, 4);
  const int64_t num_records = static_cast<int64_t>(kMaxListedFailures) + 20;
  LabelledBatch bad = batch(0, 0, num_records);
  for (std::string& error : bad.errors) error = "planted";
  bad.errors[1].clear();
  writer.put(std::move(bad));
  writer.finish();
  writer.run();
  RunStatistics statistics = writer.statistics();
  EXPECT_EQ(statistics.num_failed, num_records - 1);
  EXPECT_EQ(statistics.num_ok, 1);
  ASSERT_EQ(statistics.failed.size(), kMaxListedFailures);
  EXPECT_EQ(statistics.failed[1].index, 2);
  EXPECT_EQ(sink_.kept[0].label_idx, -1);
  statistics.num_read = num_records;
  EXPECT_NO_THROW(check_counts(statistics));
}

TEST(CheckCounts, a_dropped_record_is_found) {
  RunStatistics statistics;
  statistics.num_read = 10;
  statistics.num_ok = 10;
  EXPECT_NO_THROW(check_counts(statistics));
  statistics.num_ok = 9;
  EXPECT_THROW(check_counts(statistics), ProgrammerError);
  statistics.num_failed = 1;  // counted, but not listed
  EXPECT_THROW(check_counts(statistics), ProgrammerError);
  statistics.failed.push_back({3, "planted"});
  EXPECT_NO_THROW(check_counts(statistics));
}

}  // namespace
}  // namespace tessera::classifier
