#include "worker_process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "classifier/isolated_classifier.h"
#include "classifier/lease_channel.h"
#include "classifier/lease_worker.h"
#include "exit_codes.h"
#include "integer_option.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/thread_pool.h"

extern char** environ;

namespace tessera::cli {

namespace {

// This very program, also where its file has been replaced meanwhile.
constexpr const char* kThisProgram = "/proc/self/exe";

std::string devices_as_json() {
  const Devices devices = find_devices();
  nlohmann::json gpus = nlohmann::json::array();
  for (const cuda::DeviceFacts& gpu : devices.gpus) {
    gpus.push_back({{"index", gpu.index},
                    {"name", escaped(gpu.name)},
                    {"major", gpu.major},
                    {"minor", gpu.minor},
                    {"num_sms", gpu.num_sms},
                    {"shared_memory_bytes", gpu.shared_memory_bytes},
                    {"l2_bytes", gpu.l2_bytes},
                    {"memory_bytes", gpu.memory_bytes}});
  }
  const nlohmann::json all = {{"gpus", gpus}, {"why_none", devices.why_none}, {"bf16", devices.cpu_multiplies_bf16}};
  return all.dump();
}

Devices devices_of_json(const std::string& text) {
  const nlohmann::json all = nlohmann::json::parse(text);
  Devices devices;
  devices.why_none = all.at("why_none");
  devices.cpu_multiplies_bf16 = all.at("bf16");
  for (const nlohmann::json& gpu : all.at("gpus")) {
    devices.gpus.push_back({.index = gpu.at("index"),
                            .name = gpu.at("name"),
                            .major = gpu.at("major"),
                            .minor = gpu.at("minor"),
                            .num_sms = gpu.at("num_sms"),
                            .shared_memory_bytes = gpu.at("shared_memory_bytes"),
                            .l2_bytes = gpu.at("l2_bytes"),
                            .memory_bytes = gpu.at("memory_bytes")});
  }
  return devices;
}

/// What this program, started with `arguments`, writes to its standard output.
std::string output_of(const std::vector<std::string>& arguments) {
  const std::string where = "worker process";
  int ends[2] = {-1, -1};
  if (pipe2(ends, O_CLOEXEC) != 0) throw Error(where, "cannot make a pipe: " + errno_message(errno));
  const classifier::Descriptor reading(ends[0]);
  classifier::Descriptor writing(ends[1]);
  std::vector<char*> pointers{const_cast<char*>(kThisProgram)};
  for (const std::string& argument : arguments) pointers.push_back(const_cast<char*>(argument.c_str()));
  pointers.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, writing.get(), STDOUT_FILENO);
  pid_t pid = 0;
  const int error_number = posix_spawn(&pid, kThisProgram, &actions, nullptr, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  writing.reset();
  if (error_number != 0) throw Error(where, "cannot start: " + errno_message(error_number));
  std::string text;
  char piece[4096];
  while (true) {
    const ssize_t count = read(reading.get(), piece, sizeof(piece));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    text.append(piece, static_cast<size_t>(count));
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != kAllOk) {
    throw Error(where, str_cat("ended with status ", status), "the devices of this machine");
  }
  return text;
}

struct WorkerOptions {
  ModelOptions model;
  std::string input = "ids";
  int num_lanes = 1;
  bool lists_devices = false;
};

int serve(const WorkerOptions& options) {
  using classifier::InputKind;
  const InputKind input = options.input == "embeddings" ? InputKind::embeddings : InputKind::ids;
  const auto make = [&](const classifier::ChannelShape& shape) {
    const auto model = std::make_shared<const classifier::Model>(classifier::load_model(options.model.model));
    if (classifier::channel_shape(model->config, input) != shape) {
      throw Error(escaped(options.model.model), "a model of other sizes than its supervisor's", "the same files");
    }
    return make_classifiers(model, options.model, input, true);
  };
  return classifier::serve_leases(options.num_lanes, make) ? kAllOk : kDeviceFailed;
}

std::vector<std::string> worker_arguments(const ModelOptions& options, const std::string& device, int num_threads,
                                          classifier::InputKind input, int num_lanes) {
  std::vector<std::string> arguments{kThisProgram,
                                     kWorkerCommand,
                                     "--model=" + options.model,
                                     "--device=" + device,
                                     "--precision=" + options.precision,
                                     "--form=" + options.form,
                                     str_cat("--expert-threshold=", options.expert_threshold),
                                     str_cat("--threads=", num_threads),
                                     str_cat("--batch-size=", options.batch_size),
                                     str_cat("--lanes=", num_lanes)};
  arguments.push_back(input == classifier::InputKind::embeddings ? "--input=embeddings" : "--input=ids");
  if (!options.layer_precision.empty()) arguments.push_back("--layer-precision=" + options.layer_precision);
  return arguments;
}

}  // namespace

int run_worker_process(std::vector<std::string> arguments) {
  CLI::App app("The worker process of a device; started by classify --isolate", kWorkerCommand);
  WorkerOptions options;
  add_model_options(app, options.model, false);
  app.add_option("--input", options.input, "ids or embeddings");
  app.add_flag("--list-devices", options.lists_devices, "Print the devices as JSON and end");
  add_integer(app, "--lanes", options.num_lanes, "Of the device", 1, classifier::kMaxLanes);
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    throw Error(kWorkerCommand, error.what());
  }
  if (options.lists_devices) {
    std::puts(devices_as_json().c_str());
    return kAllOk;
  }
  options.model.isolation.is_worker = true;
  classifier::become_worker_process();
  return serve(options);
}

Devices find_devices_elsewhere() {
  const std::string text = output_of({kWorkerCommand, "--list-devices"});
  try {
    return devices_of_json(text);
  } catch (const nlohmann::json::exception&) {
    throw Error("worker process", "'" + escaped(text) + "'", "the devices of this machine as JSON");
  }
}

std::vector<std::unique_ptr<classifier::Classifier>> make_isolated(const classifier::ClassifierConfig& config,
                                                                   const ModelOptions& options, const BackEnd& back_end,
                                                                   classifier::InputKind input) {
  const int num_processes =
      back_end.on_gpu() ? static_cast<int>(back_end.gpus.size()) : options.isolation.num_processes;
  const int all_threads = options.num_threads > 0 ? options.num_threads : available_processors();
  classifier::IsolationOptions isolation;
  isolation.shape = classifier::channel_shape(config, input);
  isolation.pad_id = static_cast<int32_t>(config.pad_id);
  isolation.num_lanes = back_end.on_gpu() ? kLanesPerGpu : 1;
  isolation.lease_timeout = std::chrono::seconds(options.isolation.lease_seconds);
  std::vector<std::unique_ptr<classifier::Classifier>> classifiers;
  for (int i = 0; i < num_processes; ++i) {
    const std::string device =
        back_end.on_gpu() ? str_cat("cuda:", back_end.gpus[static_cast<size_t>(i)].index) : std::string("cpu");
    isolation.name = back_end.on_gpu() || num_processes == 1 ? device : str_cat(device, " ", i);
    isolation.command =
        worker_arguments(options, device, std::max(1, all_threads / num_processes), input, isolation.num_lanes);
    for (auto& lane : classifier::make_isolated_classifiers(isolation)) classifiers.push_back(std::move(lane));
  }
  return classifiers;
}

}  // namespace tessera::cli
