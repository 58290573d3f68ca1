#include "io/records.h"

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

InputFormat parse_input_format(std::string_view name) {
  if (name == "text") return InputFormat::text;
  if (name == "csv") return InputFormat::csv;
  if (name == "jsonl") return InputFormat::jsonl;
  if (name == "ids") return InputFormat::ids;
  if (name == "embeddings") return InputFormat::embeddings;
  throw Error("--format", quote(name), "text, csv, jsonl, ids or embeddings");
}

}  // namespace tessera::io
