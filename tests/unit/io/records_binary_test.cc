#include <gtest/gtest.h>

#include "io/records.h"
#include "tessera/core/check.h"
#include "unit/io/record_test_util.h"

namespace tessera::io {
namespace {

namespace fs = std::filesystem;

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::vector<int32_t> counting(size_t size) {
  std::vector<int32_t> values(size);
  for (size_t i = 0; i < size; ++i) values[i] = static_cast<int32_t>(i * 2'654'435'761u);
  return values;
}

struct Rows {
  std::vector<int32_t> ids;
  Records errors;
};

Rows read_rows(RecordReader& reader, int64_t batch_size, size_t row_size) {
  Rows rows;
  RecordBatch batch;
  while (reader.next(batch_size, batch)) {
    EXPECT_EQ(batch.first_index, static_cast<int64_t>(rows.errors.size()));
    EXPECT_TRUE(batch.num_records >= 1 && batch.num_records <= batch_size);
    EXPECT_EQ(batch.errors.size(), static_cast<size_t>(batch.num_records));
    EXPECT_TRUE(batch.texts.empty());
    rows.ids.insert(rows.ids.end(), batch.ids.begin(),
                    batch.ids.begin() + static_cast<size_t>(batch.num_records) * row_size);
    rows.errors.insert(rows.errors.end(), batch.errors.begin(), batch.errors.end());
  }
  return rows;
}

// So many bytes at once that several threads read them, the last piece partial.
TEST(BinaryRecords, MuchAtOnceIsTheSameBytes) {
  const TempDir dir;
  constexpr size_t kRecords = (45u << 20) / 20;
  const std::vector<int32_t> ids = counting(kRecords * 5);
  write_file(dir / "in", bytes_of(ids));
  const RecordSource source = {.format = InputFormat::ids, .path = (dir / "in").string(), .sequence_length = 5};
  for (const int64_t batch_size : {int64_t{1} << 20, int64_t{3} << 20, int64_t{1'000'003}}) {
    const auto reader = open_records(source);
    const Rows rows = read_rows(*reader, batch_size, 5);
    ASSERT_TRUE(rows.ids == ids) << batch_size;
    EXPECT_EQ(reader->bytes_read(), static_cast<int64_t>(kRecords * 20));
  }
}

TEST(BinaryRecords, AFileThatShrinksWhileMuchIsReadIsAnError) {
  const TempDir dir;
  constexpr size_t kRecords = (45u << 20) / 20;
  write_file(dir / "in", bytes_of(counting(kRecords * 5)));
  const auto reader = open_records({.format = InputFormat::ids, .path = (dir / "in").string(), .sequence_length = 5});
  constexpr size_t kLeft = (21u << 20) / 20;
  fs::resize_file(dir / "in", kLeft * 20 + 7);
  RecordBatch batch;
  int64_t num_records = 0;
  const std::string error = error_of([&] {
    while (reader->next(int64_t{2} << 20, batch)) num_records += batch.num_records;
  });
  EXPECT_EQ(num_records, static_cast<int64_t>(kLeft));
  EXPECT_NE(error.find(std::to_string(kLeft * 20 + 7) + " bytes"), std::string::npos) << error;
}

TEST(BinaryRecords, IdsOfEveryCountAndBatchSize) {
  const TempDir dir;
  const RecordSource source = {.format = InputFormat::ids, .path = (dir / "in").string(), .sequence_length = 5};
  for (size_t num_records = 0; num_records <= 12; ++num_records) {
    const std::vector<int32_t> ids = counting(num_records * 5);
    write_file(dir / "in", bytes_of(ids));
    for (int64_t batch_size = 1; batch_size <= 13; ++batch_size) {
      const auto reader = open_records(source);
      EXPECT_EQ(reader->num_records_hint(), static_cast<int64_t>(num_records));
      EXPECT_EQ(reader->num_bytes_hint(), static_cast<int64_t>(num_records * 20));
      const Rows rows = read_rows(*reader, batch_size, 5);
      ASSERT_EQ(rows.ids, ids);
      ASSERT_EQ(rows.errors.size(), num_records);
      for (const std::string& error : rows.errors) ASSERT_EQ(error, "");
      ASSERT_EQ(reader->bytes_read(), static_cast<int64_t>(num_records * 20));
    }
  }
}

TEST(BinaryRecords, Embeddings) {
  const TempDir dir;
  std::vector<float> values(2 * 3 * 4);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i) - 0.5f;
  write_file(dir / "in", bytes_of(values));
  const auto reader = open_records(
      {.format = InputFormat::embeddings, .path = (dir / "in").string(), .sequence_length = 4, .embedding_size = 3});
  RecordBatch batch;
  ASSERT_TRUE(reader->next(5, batch));
  EXPECT_EQ(batch.num_records, 2);
  ASSERT_GE(batch.embeddings.size(), values.size());
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(batch.embeddings[i], values[i]);
  EXPECT_TRUE(batch.ids.empty());
  EXPECT_FALSE(reader->next(5, batch));
}

TEST(BinaryRecords, AFileOfAnotherSizeIsRefused) {
  const TempDir dir;
  for (const size_t size : {1u, 19u, 21u, 39u}) {
    write_file(dir / "in", std::string(size, 'x'));
    const std::string path = (dir / "in").string();
    EXPECT_EQ(error_of([&] { open_records({.format = InputFormat::ids, .path = path, .sequence_length = 5}); }),
              path + str_cat(": got ", size, " bytes, expected a multiple of the 20 bytes of a record"));
  }
}

TEST(BinaryRecords, AShortTailOfStandardInputIsAFailedRecord) {
  const std::vector<int32_t> ids = counting(5 * 7);
  const std::string bytes = bytes_of(ids) + "tail";
  for (const size_t chunk : {1, 3, 20, 64, 1'000}) {
    for (const int64_t batch_size : {1, 2, 7, 8, 9}) {
      const Rows rows = with_piped_input(bytes, chunk, [&] {
        const auto reader = open_records({.format = InputFormat::ids, .path = "-", .sequence_length = 5});
        EXPECT_EQ(reader->num_records_hint(), -1);
        return read_rows(*reader, batch_size, 5);
      });
      ASSERT_EQ(rows.errors.size(), 8u);
      ASSERT_EQ(rows.errors.back(), "standard input: record 7: got 4 bytes, expected 20");
      ASSERT_TRUE(std::equal(ids.begin(), ids.end(), rows.ids.begin()));
      for (size_t i = ids.size(); i < ids.size() + 5; ++i) ASSERT_EQ(rows.ids[i], 0);
    }
  }
}

TEST(BinaryRecords, StandardInputFromAFileStartsWhereItStands) {
  const TempDir dir;
  const std::vector<int32_t> ids = counting(5 * 4);
  write_file(dir / "in", "head" + bytes_of(ids) + "xy");
  const int descriptor = open((dir / "in").c_str(), O_RDONLY);
  ASSERT_EQ(lseek(descriptor, 4, SEEK_SET), 4);
  const StandardInput redirected(descriptor);
  const auto reader = open_records({.format = InputFormat::ids, .path = "-", .sequence_length = 5});
  EXPECT_EQ(reader->num_bytes_hint(), 82);
  EXPECT_EQ(reader->num_records_hint(), 5);
  const Rows rows = read_rows(*reader, 3, 5);
  EXPECT_EQ(rows.errors, (Records{"", "", "", "", "standard input: record 4: got 2 bytes, expected 20"}));
}

TEST(BinaryRecords, AFileThatShrinksHandsOutWhatWasReadAndThenFails) {
  const TempDir dir;
  const std::string path = (dir / "in").string();
  write_file(path, bytes_of(counting(5 * 10)));
  const auto reader = open_records({.format = InputFormat::ids, .path = path, .sequence_length = 5});
  fs::resize_file(path, 20 * 4 + 7);
  RecordBatch batch;
  ASSERT_TRUE(reader->next(3, batch));
  EXPECT_EQ(batch.num_records, 3);
  ASSERT_TRUE(reader->next(3, batch));
  EXPECT_EQ(batch.num_records, 1);
  const std::string message = path + ": got 87 bytes, expected the 200 bytes that it had when it was opened";
  EXPECT_EQ(error_of([&] { reader->next(3, batch); }), message);
  EXPECT_EQ(error_of([&] { reader->next(3, batch); }), message);
}

TEST(BinaryRecords, StopDropsTheRowThatItCuts) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const StandardInput redirected(ends[0]);
  ASSERT_EQ(::write(ends[1], std::string(50, 'x').data(), 50), 50);
  std::atomic<bool> stop{false};
  const auto reader = open_records({.format = InputFormat::ids, .path = "-", .sequence_length = 5, .stop = &stop});
  std::thread stopper([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    stop = true;
  });
  const Rows rows = read_rows(*reader, 8, 5);
  EXPECT_EQ(rows.errors, (Records{"", ""}));
  stopper.join();
  close(ends[1]);
}

TEST(BinaryRecords, BatchesThatWereMovedAwayAreFilledAnew) {
  const TempDir dir;
  write_file(dir / "in", bytes_of(counting(5 * 4)));
  const auto reader = open_records({.format = InputFormat::ids, .path = (dir / "in").string(), .sequence_length = 5});
  RecordBatch batch;
  ASSERT_TRUE(reader->next(2, batch));
  const RecordBatch first = std::move(batch);
  ASSERT_TRUE(reader->next(2, batch));
  EXPECT_EQ(first.ids[0], counting(20)[0]);
  EXPECT_EQ(batch.ids[9], counting(20)[19]);
}

TEST(BinaryRecords, ShapesMustBeGiven) {
  EXPECT_THROW(open_records({.format = InputFormat::ids, .path = "/dev/null"}), ProgrammerError);
  EXPECT_THROW(open_records({.format = InputFormat::embeddings, .path = "/dev/null", .sequence_length = 4}),
               ProgrammerError);
}

}  // namespace
}  // namespace tessera::io
