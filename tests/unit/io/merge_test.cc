#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "io/checksum.h"
#include "io/manifest.h"
#include "tessera/core/check.h"
#include "unit/exhaustive.h"
#include "unit/io/io_test_util.h"

namespace tessera::io {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

enum class Layout { ranges, blocks };

/// Parts of an output whose record i is `record(i)`.
class MergeTest : public ::testing::Test {
 protected:
  std::string record(int64_t index) const {
    if (record_bytes_ > 0) return std::string(record_bytes_, static_cast<char>(index * 31 + '\n'));
    return str_cat("line ", index, std::string(static_cast<size_t>(index % 7), '.'), "\n");
  }

  PartManifest make_part(int64_t i) {
    PartManifest manifest;
    manifest.shard = {i, num_shards_};
    manifest.records = shard_records(manifest.shard, layout_ == Layout::ranges ? total_ : -1);
    manifest.records.end = std::min(manifest.records.end, total_);
    manifest.records.begin = std::min(manifest.records.begin, manifest.records.end);
    manifest.total_records = total_;
    std::string bytes = header_;
    for (int64_t index = 0; index < total_; ++index) {
      const IndexRange range = manifest.records.next_range(index);
      if (range.begin == index && range.end > index) bytes += record(index);
    }
    manifest.num_ok = manifest.records.num_records();
    manifest.output_format = "csv";
    manifest.header_bytes = header_.size();
    manifest.record_bytes = record_bytes_;
    manifest.fingerprint = {{"model", "m"}};
    set_bytes(bytes, manifest);
    return manifest;
  }

  /// The part, consistent with its manifest whatever `bytes` are.
  void set_bytes(const std::string& bytes, PartManifest& manifest) {
    write_file(part(manifest.shard.index), bytes);
    manifest.num_bytes = bytes.size();
    manifest.checksum = file_checksum(part(manifest.shard.index));
  }

  void make_parts() {
    for (int64_t i = 0; i < num_shards_; ++i) write_manifest(part(i), make_part(i));
  }

  std::string whole() const {
    std::string bytes = header_;
    for (int64_t i = 0; i < total_; ++i) bytes += record(i);
    return bytes;
  }

  fs::path part(int64_t i) const { return part_path(output_, {i, num_shards_}); }
  MergeSummary merge() { return merge_parts(find_parts(output_), output_); }
  /// The message of a merge that fails, which leaves nothing behind.
  std::string merge_error() {
    const std::string message = error_of([&] { merge(); });
    EXPECT_FALSE(fs::exists(output_)) << message;
    EXPECT_FALSE(fs::exists(output_.string() + ".partial")) << message;
    return message;
  }
  /// Changes the manifest of part `i` on disk.
  void edit(int64_t i, const std::function<void(json&)>& change) {
    json object = json::parse(read_file(manifest_path(part(i))));
    change(object);
    write_file(manifest_path(part(i)), object.dump());
  }

  TempDir dir_;
  fs::path output_ = dir_ / "labels.csv";
  int64_t num_shards_ = 3;
  int64_t total_ = 5000;
  Layout layout_ = Layout::blocks;
  std::string header_ = "index,label\n";
  size_t record_bytes_ = 0;
};

TEST_F(MergeTest, gives_the_output_of_one_run) {
  for (const Layout layout : {Layout::ranges, Layout::blocks}) {
    for (const size_t record_bytes : {0, 8}) {
      for (const int64_t num_shards : {1, 2, 3, 8}) {
        for (const int64_t total : {0, 1, 5, 1024, 5000, 60'000}) {
          if (testing::kExhaustiveDivisor > 1 && total == 60'000 && num_shards != 3) continue;
          layout_ = layout;
          record_bytes_ = record_bytes;
          header_ = record_bytes == 0 ? "index,label\n" : "";
          num_shards_ = num_shards;
          total_ = total;
          make_parts();
          const MergeSummary summary = merge();
          EXPECT_EQ(read_file(output_), whole()) << total << " records, " << num_shards << " shards";
          EXPECT_EQ(summary.num_ok, total);
          EXPECT_EQ(summary.num_bytes, whole().size());
          for (int64_t i = 0; i < num_shards; ++i) fs::remove(manifest_path(part(i)));
        }
      }
    }
  }
}

TEST_F(MergeTest, a_manifest_comes_back_as_it_was_written) {
  const PartManifest manifest = make_part(1);
  write_manifest(part(1), manifest);
  EXPECT_EQ(read_manifest(part(1)), manifest);
}

TEST_F(MergeTest, parts_may_be_named_in_any_order_and_lie_anywhere) {
  make_parts();
  fs::create_directory(dir_ / "elsewhere");
  const fs::path moved = dir_ / "elsewhere" / "renamed";
  fs::rename(part(1), moved);
  fs::rename(manifest_path(part(1)), manifest_path(moved));
  merge_parts({part(2), moved, part(0)}, output_);
  EXPECT_EQ(read_file(output_), whole());
}

TEST_F(MergeTest, missing_shards_are_named) {
  make_parts();
  fs::remove(manifest_path(part(1)));
  expect_contains(merge_error(), "got 2 of 3 shards: missing shard 1, expected all of 0 to 2");
  fs::remove(manifest_path(part(2)));
  expect_contains(merge_error(), "got 1 of 3 shards: missing shard 1, 2, expected");
  fs::remove(manifest_path(part(0)));
  expect_contains(merge_error(), "no labels.csv.I-of-N.manifest.json beside it");
  expect_contains(error_of([&] { find_parts(dir_ / "no" / "o"); }), "cannot list");
}

TEST_F(MergeTest, of_many_missing_shards_the_first_are_named) {
  num_shards_ = 40;
  write_manifest(part(20), make_part(20));
  expect_contains(merge_error(), "missing shard 0, 1, 2, 3, 4, 5, 6, 7, ..., expected");
}

TEST_F(MergeTest, a_shard_given_twice_is_named) {
  make_parts();
  expect_contains(error_of([&] {
                    merge_parts({part(0), part(1), part(1), part(2)}, output_);
                  }),
                  "shard 1 of 3: got two parts");
}

TEST_F(MergeTest, parts_of_two_runs_do_not_mix) {
  make_parts();
  edit(2, [](json& manifest) { manifest["fingerprint"]["model"] = "other"; });
  expect_contains(merge_error(), "2-of-3: made by another run: 'model': got 'other', expected 'm'");
  make_parts();
  edit(2, [](json& manifest) { manifest["total_records"] = 5001; });
  expect_contains(merge_error(), "got 5001 records in the input, expected 5000");
  make_parts();
  num_shards_ = 2;
  make_parts();
  expect_contains(merge_error(), "got parts of 2 shards and of 3");
  const fs::path of_two = part(0);
  num_shards_ = 3;
  expect_contains(error_of([&] { merge_parts({part(0), of_two}, output_); }), "got a part of 2 shards, expected of 3");
}

TEST_F(MergeTest, other_files_beside_the_output_are_left_alone) {
  make_parts();
  for (const char* name :
       {"labels.csv.0-of-0.manifest.json", "labels.csv.9-of-3.manifest.json", "labels.csv.manifest.json",
        "labels.csv..manifest.json", "labels.csv.a-of-b.manifest.json", "labels.csv.0-of-2",
        "other.csv.0-of-2.manifest.json", "labels.csv.0-of-2.manifest.json.partial"}) {
    write_file(dir_ / name, "not ours");
  }
  merge();
  EXPECT_EQ(read_file(output_), whole());
}

TEST_F(MergeTest, records_that_no_part_holds_are_named) {
  layout_ = Layout::ranges;
  total_ = 300;
  make_parts();
  PartManifest shorter = make_part(1);  // without its last ten
  shorter.records.end -= 10;
  shorter.records.block -= 10;
  shorter.num_ok -= 10;
  std::string bytes = header_;
  for (int64_t index = 100; index < 190; ++index) bytes += record(index);
  set_bytes(bytes, shorter);
  write_manifest(part(1), shorter);
  expect_contains(merge_error(), "records [190, 200): got no part that holds them, expected one");
}

TEST_F(MergeTest, records_at_the_end_that_no_part_holds_are_named) {
  layout_ = Layout::ranges;
  total_ = 300;
  make_parts();
  for (int64_t i = 0; i < 3; ++i) edit(i, [](json& manifest) { manifest["total_records"] = 305; });
  expect_contains(merge_error(), "records [300, 305): got no part");
}

TEST_F(MergeTest, records_that_two_parts_hold_are_named_with_both) {
  layout_ = Layout::ranges;
  total_ = 300;
  make_parts();
  PartManifest longer = make_part(1);
  longer.records.end += 10;
  longer.records.block += 10;
  longer.records.stride += 10;
  longer.num_ok += 10;
  std::string bytes = header_;
  for (int64_t index = 100; index < 210; ++index) bytes += record(index);
  set_bytes(bytes, longer);
  write_manifest(part(1), longer);
  const std::string message = merge_error();
  expect_contains(message, "records [200, 210): got two parts that hold them");
  expect_contains(message, "1-of-3 and ");
  expect_contains(message, "2-of-3, expected one");
}

TEST_F(MergeTest, a_part_that_was_changed_is_named) {
  make_parts();
  const std::string bytes = read_file(part(1));
  std::string changed = bytes;
  changed[changed.size() / 2] ^= 1;
  write_file(part(1), changed);
  expect_contains(merge_error(), "1-of-3: got the checksum ");
  write_file(part(1), bytes.substr(0, bytes.size() - 1));
  expect_contains(merge_error(), str_cat("got ", bytes.size() - 1, " bytes, expected the ", bytes.size()));
  write_file(part(1), bytes + "x");
  expect_contains(merge_error(), "1-of-3: got ");
  fs::remove(part(1));
  expect_contains(merge_error(), "1-of-3: cannot open");
}

TEST_F(MergeTest, lines_and_headers_are_checked_even_where_the_checksum_is_right) {
  make_parts();
  PartManifest manifest = make_part(1);
  const std::string bytes = read_file(part(1));
  set_bytes(bytes.substr(0, bytes.size() - 1) + ".", manifest);  // the last newline is gone
  write_manifest(part(1), manifest);
  expect_contains(merge_error(), "lines, expected ");
  set_bytes("\n" + bytes.substr(1), manifest);
  write_manifest(part(1), manifest);
  expect_contains(merge_error(), "another header");
  std::string joined = bytes;
  joined[joined.find('\n', header_.size())] = '.';  // two records in one line
  set_bytes(joined, manifest);
  write_manifest(part(1), manifest);
  expect_contains(merge_error(), "lines, expected ");
}

TEST_F(MergeTest, malformed_manifests_are_errors_that_name_the_file) {
  make_parts();
  const std::string good = read_file(manifest_path(part(1)));
  for (const std::string& bytes :
       {std::string(), std::string("null"), std::string("[]"), good.substr(0, good.size() / 2), good + "x",
        std::string(1000, '\0'), std::string(100'000, '{'), "\xEF\xBB\xBF" + good, std::string((1 << 20) + 1, ' ')}) {
    write_file(manifest_path(part(1)), bytes);
    expect_contains(merge_error(), manifest_path(part(1)).string());
  }
}

TEST_F(MergeTest, every_member_of_a_manifest_is_checked) {
  make_parts();
  const json good = json::parse(read_file(manifest_path(part(1))));
  const auto expect_refused = [&](const json& object, const std::string& what) {
    write_file(manifest_path(part(1)), object.dump());
    const std::string message = merge_error();
    expect_contains(message, "1-of-3");
    EXPECT_NE(message, "no error") << what;
  };
  for (const auto& [key, value] : good.items()) {
    json object = good;
    object.erase(key);
    expect_refused(object, key + " missing");
    for (const json& wrong : {json(nullptr), json(-1), json(1.5), json("x"), json(json::array()), json(true),
                              json(int64_t{1} << 61), json(UINT64_MAX)}) {
      if (key == "output_format" && wrong.is_string()) continue;  // checked against the other parts
      object[key] = wrong;
      expect_refused(object, key + " " + wrong.dump());
    }
  }
  for (const char* key : {"begin", "end", "block", "stride"}) {
    for (const json& wrong : {json(nullptr), json(-1), json(0.5), json(int64_t{1} << 60), json(int64_t{1} << 62)}) {
      json object = good;
      object["records"][key] = wrong;
      expect_refused(object, std::string(key) + " " + wrong.dump());
    }
  }
}

TEST_F(MergeTest, numbers_that_would_need_more_than_there_is_are_refused_at_once) {
  make_parts();
  // 2^59 records of a byte each: the part's size says otherwise before anybody walks them.
  edit(1, [](json& manifest) {
    const int64_t huge = int64_t{1} << 59;
    manifest["records"] = {{"begin", 0}, {"end", huge}, {"block", 1}, {"stride", 1}};
    manifest["ok"] = huge;
    manifest["bytes"] = huge + 12;
    manifest["total_records"] = huge;
  });
  for (const int64_t i : {0, 2}) edit(i, [](json& manifest) { manifest["total_records"] = int64_t{1} << 59; });
  expect_contains(merge_error(), "1-of-3: got ");
}

}  // namespace
}  // namespace tessera::io
