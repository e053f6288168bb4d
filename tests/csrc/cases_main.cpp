#include "cases.hpp"

int main(int argc, char** argv) {
  if (argc == 1) {
    for (const auto& [name, run] : cases::all()) std::printf("%s\n", name.c_str());
    return 0;
  }
  const auto found = cases::all().find(argv[1]);
  if (found == cases::all().end()) return 2;
  found->second();
  return 0;
}
