#include "io/manifest.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "io/file.h"
#include "io/json.h"
#include "io/quote.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::io {

namespace {

namespace fs = std::filesystem;

constexpr const char* kPartFormat = "tessera-part";
constexpr int64_t kPartVersion = 1;
constexpr int64_t kMaxHeaderBytes = 1 << 20;  // a csv header with a column for each of 4,096 experts has 60 kB
constexpr const char* kSuffix = ".manifest.json";

/// Numbers that contradict each other, as a message; or empty.
std::string contradiction(const PartManifest& manifest) {
  const RecordBlocks& records = manifest.records;
  if (manifest.shard.index >= manifest.shard.count) return "a 'shard' that is not below 'num_shards'";
  if (records.block > records.stride) return "'records': a 'block' larger than its 'stride'";
  if (records.begin > records.end || records.end > manifest.total_records) {
    return "'records': not begin <= end <= total_records";
  }
  if (records.num_records() != manifest.num_records()) {
    return str_cat("'records' of ", records.num_records(), " records, but 'ok' and 'failed' of ",
                   manifest.num_records());
  }
  const uint64_t result_bytes = manifest.num_bytes - manifest.header_bytes;
  const uint64_t num_records = static_cast<uint64_t>(manifest.num_records());
  const uint64_t record_bytes = std::max<uint64_t>(manifest.record_bytes, 1);  // a line has its newline
  if (manifest.header_bytes > manifest.num_bytes || result_bytes / record_bytes < num_records ||
      (manifest.record_bytes > 0 && result_bytes != num_records * record_bytes)) {
    return str_cat("'bytes' ", manifest.num_bytes, " for ", num_records, " records");
  }
  return "";
}

/// The number of shards if `name` is "<stem>.<i>-of-<n>.manifest.json", else 0.
int64_t num_shards_of(const std::string& name, const std::string& stem) {
  if (!name.starts_with(stem + ".") || !name.ends_with(kSuffix)) return 0;
  std::string middle = name.substr(stem.size() + 1);
  middle.resize(middle.size() - std::min(middle.size(), std::string_view(kSuffix).size()));
  const size_t separator = middle.find("-of-");
  if (separator == std::string::npos) return 0;
  try {
    return parse_shard(middle.substr(0, separator) + "/" + middle.substr(separator + 4)).count;
  } catch (const Error&) {
    return 0;  // somebody else's file
  }
}

}  // namespace

fs::path manifest_path(const fs::path& part) {
  fs::path path = part;
  path += kSuffix;
  return path;
}

void write_manifest(const fs::path& part, const PartManifest& manifest) {
  const RecordBlocks& records = manifest.records;
  const nlohmann::ordered_json object = {
      {"format", kPartFormat},
      {"version", kPartVersion},
      {"shard", manifest.shard.index},
      {"num_shards", manifest.shard.count},
      {"records",
       {{"begin", records.begin}, {"end", records.end}, {"block", records.block}, {"stride", records.stride}}},
      {"total_records", manifest.total_records},
      {"ok", manifest.num_ok},
      {"failed", manifest.num_failed},
      {"output_format", manifest.output_format},
      {"header_bytes", manifest.header_bytes},
      {"record_bytes", manifest.record_bytes},
      {"bytes", manifest.num_bytes},
      {"xxh128", manifest.checksum},
      {"fingerprint", to_json(manifest.fingerprint)},
  };
  OutputFile file(manifest_path(part));
  file.write(object.dump(2) + "\n");
  file.commit();
}

PartManifest read_manifest(const fs::path& part) {
  const fs::path path = manifest_path(part);
  const std::string where = escaped(path.native());
  const nlohmann::json object = parse_json_object(read_text_file(path, kMaxConfigBytes), where);
  const JsonReader reader(object, where);
  const std::string format = reader.require_string("format");
  if (format != kPartFormat) throw Error(where + ": 'format'", quote(format), kPartFormat);
  reader.require_int("version", kPartVersion, kPartVersion);
  PartManifest manifest;
  manifest.shard.count = reader.require_int("num_shards", 1, kMaxShards);
  manifest.shard.index = reader.require_int("shard", 0, kMaxShards);
  const auto records = object.find("records");
  if (records == object.end() || !records->is_object()) throw Error(where + ": 'records'", "no object", "an object");
  const JsonReader blocks(*records, where + ": 'records'");
  manifest.records.begin = blocks.require_int("begin", 0, kUnknownEnd);
  manifest.records.end = blocks.require_int("end", 0, kUnknownEnd);
  manifest.records.block = blocks.require_int("block", 0, kUnknownEnd);
  manifest.records.stride = blocks.require_int("stride", 1, kUnknownEnd);
  manifest.total_records = reader.require_int("total_records", 0, kUnknownEnd);
  manifest.num_ok = reader.require_int("ok", 0, kUnknownEnd);
  manifest.num_failed = reader.require_int("failed", 0, kUnknownEnd);
  manifest.output_format = reader.require_string("output_format");
  manifest.header_bytes = static_cast<uint64_t>(reader.require_int("header_bytes", 0, kMaxHeaderBytes));
  // A row of 1 Mi classes at most, so that the product with a number of records fits.
  manifest.record_bytes = static_cast<uint64_t>(reader.require_int("record_bytes", 0, 4 << 20));
  manifest.num_bytes = static_cast<uint64_t>(reader.require_int("bytes", 0, kUnknownEnd));
  manifest.checksum = reader.require_string("xxh128");
  const auto fingerprint = object.find("fingerprint");
  if (fingerprint == object.end()) throw Error(where + ": 'fingerprint'", "no such key", "an object of strings");
  manifest.fingerprint = fingerprint_from_json(*fingerprint, where);
  const std::string problem = contradiction(manifest);
  if (!problem.empty()) throw Error(where, problem, "a manifest of a shard's whole output");
  return manifest;
}

std::vector<fs::path> find_parts(const fs::path& output) {
  const fs::path directory = output.has_parent_path() ? output.parent_path() : fs::path(".");
  const std::string stem = output.filename().string();
  std::set<int64_t> counts;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, error)) {
    const int64_t count = num_shards_of(entry.path().filename().string(), stem);
    if (count > 0) counts.insert(count);
  }
  if (error) throw Error(escaped(directory.native()), "cannot list: " + error.message());
  const std::string name = escaped(output.native());
  if (counts.empty()) {
    throw Error(name, "no " + escaped(stem) + ".I-of-N.manifest.json beside it", "the parts of a sharded run");
  }
  if (counts.size() > 1) {
    throw Error(name, str_cat("parts of ", *counts.begin(), " shards and of ", *counts.rbegin()),
                "parts of one run; remove the others, or name the parts to merge");
  }
  std::vector<fs::path> parts;
  for (int64_t i = 0; i < *counts.begin(); ++i) {
    const fs::path part = part_path(output, {.index = i, .count = *counts.begin()});
    if (fs::exists(manifest_path(part), error)) parts.push_back(part);
  }
  return parts;
}

}  // namespace tessera::io
