#include "io/records.h"

#include <algorithm>

#include "io/quote.h"
#include "io/record_stream.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::io {

int64_t RecordReader::skip(int64_t count) {
  constexpr int64_t kRecordsAtOnce = 256;
  RecordBatch dropped;
  int64_t done = 0;
  while (done < count && next(std::min(count - done, kRecordsAtOnce), dropped)) done += dropped.num_records;
  return done;
}

std::unique_ptr<RecordReader> open_records(const RecordSource& source) {
  switch (source.format) {
    case InputFormat::csv:
    case InputFormat::tsv: return open_csv_records(source);
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
    case InputFormat::tsv: return "tsv";
    case InputFormat::jsonl: return "jsonl";
    case InputFormat::ids: return "ids";
    case InputFormat::embeddings: break;
  }
  return "embeddings";
}

InputFormat parse_input_format(std::string_view name) {
  for (const InputFormat format : {InputFormat::text, InputFormat::csv, InputFormat::tsv, InputFormat::jsonl,
                                   InputFormat::ids, InputFormat::embeddings}) {
    if (name == input_format_name(format)) return format;
  }
  throw Error("format", quote(name), "text, csv, tsv, jsonl, ids or embeddings");
}

}  // namespace tessera::io
