#include "io/records.h"

#include <algorithm>

#include "io/quote.h"
#include "io/record_stream.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::io {

namespace {

class SingleTextReader final : public RecordReader {
 public:
  explicit SingleTextReader(std::string text) : text_(std::move(text)) {}

  bool next(int64_t max_records, RecordBatch& batch) override {
    TESSERA_CHECK(max_records >= 1, max_records);
    batch.first_index = done_ ? 1 : 0;
    batch.num_records = done_ ? 0 : 1;
    batch.texts.clear();
    batch.errors.clear();
    if (done_) return false;
    const std::string problem = text_problem(text_);
    batch.texts.push_back(problem.empty() ? std::string_view(text_) : "");
    batch.errors.push_back(problem.empty() ? "" : "--text: " + problem);
    done_ = true;
    return true;
  }
  int64_t num_records_hint() const override { return 1; }
  int64_t bytes_read() const override { return done_ ? num_bytes_hint() : 0; }
  int64_t num_bytes_hint() const override { return static_cast<int64_t>(text_.size()); }

 private:
  std::string text_;
  std::atomic<bool> done_{false};
};

}  // namespace

int64_t RecordReader::skip(int64_t count) {
  constexpr int64_t kRecordsAtOnce = 256;
  RecordBatch dropped;
  int64_t done = 0;
  while (done < count && next(std::min(count - done, kRecordsAtOnce), dropped)) done += dropped.num_records;
  return done;
}

std::unique_ptr<RecordReader> open_records(const RecordSource& source) {
  if (source.text.has_value()) return std::make_unique<SingleTextReader>(*source.text);
  switch (source.format) {
    case InputFormat::csv: return open_csv_records(source);
    case InputFormat::ids:
    case InputFormat::embeddings: return open_binary_records(source);
    case InputFormat::text:
    case InputFormat::jsonl: break;
  }
  return open_line_records(source);
}

std::string_view input_format_name(InputFormat format) {
  switch (format) {
    case InputFormat::text: return "text";
    case InputFormat::csv: return "csv";
    case InputFormat::jsonl: return "jsonl";
    case InputFormat::ids: return "ids";
    case InputFormat::embeddings: break;
  }
  return "embeddings";
}

InputFormat parse_input_format(std::string_view name) {
  for (const InputFormat format :
       {InputFormat::text, InputFormat::csv, InputFormat::jsonl, InputFormat::ids, InputFormat::embeddings}) {
    if (name == input_format_name(format)) return format;
  }
  throw Error("--format", quote(name), "text, csv, jsonl, ids or embeddings");
}

}  // namespace tessera::io
