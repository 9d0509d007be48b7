#ifndef KVCACHE_EXAMPLES_PROMPTS_PROMPTS_H_
#define KVCACHE_EXAMPLES_PROMPTS_PROMPTS_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace kvcache::examples {

// A prompt and what users say after it. A request is the text followed by one of the turns; the
// text ends with a line break, so that the tokens of a request are those of the text and then those
// of the turn.
struct Prompt {
  absl::string_view name;
  std::string text;                      // about 500 tokens
  std::vector<absl::string_view> turns;  // about 16 tokens each
};

// Three unrelated documents with 34 questions each.
std::vector<Prompt> DocumentPrompts();

// Five tasks of one agent with 10 steps each. Every text begins with AgentPreamble().
std::vector<Prompt> AgentPrompts();

// The instructions and the tool list that the agent's tasks share: about 415 tokens.
absl::string_view AgentPreamble();

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_PROMPTS_PROMPTS_H_
