// Scores rows of ids in C++ with a bundle that `stem-export --compile` has compiled for this kind of machine.
// It does not check that: where the processor lacks an instruction that the other one has, the system ends it.
//
//   score BUNDLE < ROWS    a line of probabilities for each row, in the order of the bundle's tasks
//
// ROWS has a tab between fields. Its first line names the fields: "dense", then the sparse features in the order of
// schema.json, with a colon behind those whose ids have weights. A row has comma-separated numbers in its first field,
// and ids in the others:
//
//   dense      uid   tags   hour:
//   0.5,1.25   3     1,4    7:0.5
//   0.0,0.5    7            8:0.53

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <iostream>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

constexpr size_t kRowsAtOnce = 4096;

struct Feature {
  bool weighted;
  std::vector<int64_t> ids, offsets{0};
  std::vector<float> weights;
};

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text + separator);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

// The tables in the order of the file, which is that of the program's inputs. They are mapped into memory: a row is
// read when it is looked up, and processes of one machine share it.
std::vector<at::Tensor> map_tables(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY);
  struct stat status {};
  if (file < 0 || fstat(file, &status) != 0) throw std::runtime_error(path + " cannot be read");
  auto* start = static_cast<char*>(mmap(nullptr, status.st_size, PROT_READ, MAP_SHARED, file, 0));
  close(file);
  if (start == MAP_FAILED) throw std::runtime_error(path + " cannot be mapped");
  uint64_t length = 0;
  std::memcpy(&length, start, sizeof length);
  const std::string header(start + sizeof length, length);
  const std::regex entry(R"re("dtype": "(\w+)", "shape": \[(\d+), (\d+)\], "data_offsets": \[(\d+), )re");
  std::vector<at::Tensor> tables;
  for (std::sregex_iterator match(header.begin(), header.end(), entry), end; match != end; ++match) {
    const auto kind = (*match)[1] == "F32" ? at::kFloat : (*match)[1] == "F16" ? at::kHalf : at::kByte;
    char* rows = start + sizeof length + length + std::stoull((*match)[4]);
    tables.push_back(at::from_blob(rows, {std::stoll((*match)[2]), std::stoll((*match)[3])}, kind));
  }
  return tables;
}

template <typename T>
at::Tensor tensor_of(const std::vector<T>& values) {
  return at::tensor(values, at::CppTypeToScalarType<T>::value);
}

int main(int count, char** words) {
  if (count != 2) throw std::runtime_error("usage: score BUNDLE < ROWS");
  const std::string bundle = words[1];
  torch::inductor::AOTIModelPackageLoader program(bundle + "/compiled.pt2");
  const auto tables = map_tables(bundle + "/tables.safetensors");

  std::string line;
  std::getline(std::cin, line);
  const auto names = split(line, '\t');
  while (std::cin) {
    std::vector<Feature> features;
    for (size_t i = 1; i < names.size(); ++i) features.push_back({names[i].back() == ':'});
    std::vector<float> dense;
    int64_t rows = 0;
    for (; rows < static_cast<int64_t>(kRowsAtOnce) && std::getline(std::cin, line); ++rows) {
      const auto fields = split(line, '\t');
      for (const auto& number : split(fields.at(0), ',')) if (!number.empty()) dense.push_back(std::stof(number));
      for (size_t i = 0; i < features.size(); ++i) {
        for (const auto& id : split(fields.at(i + 1), ',')) {
          if (id.empty()) continue;
          features[i].ids.push_back(std::stoll(id));
          if (features[i].weighted) features[i].weights.push_back(std::stof(id.substr(id.find(':') + 1)));
        }
        features[i].offsets.push_back(static_cast<int64_t>(features[i].ids.size()));
      }
    }
    if (rows == 0) break;

    // Dense numbers (B, N); ids and offsets (B + 1) of each feature; weights of ids; tables.
    std::vector<at::Tensor> inputs{tensor_of(dense).view({rows, static_cast<int64_t>(dense.size()) / rows})};
    for (const auto& feature : features) inputs.push_back(tensor_of(feature.ids));
    for (const auto& feature : features) inputs.push_back(tensor_of(feature.offsets));
    for (const auto& feature : features) if (feature.weighted) inputs.push_back(tensor_of(feature.weights));
    inputs.insert(inputs.end(), tables.begin(), tables.end());
    const auto probabilities = program.run(inputs).at(0).contiguous();
    const auto* values = probabilities.const_data_ptr<float>();
    std::cout.precision(9);
    for (int64_t i = 0; i < probabilities.numel(); ++i) {
      std::cout << values[i] << ((i + 1) % probabilities.size(1) ? '\t' : '\n');
    }
  }
}
