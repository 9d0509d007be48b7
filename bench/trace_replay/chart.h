#ifndef KVCACHE_BENCH_TRACE_REPLAY_CHART_H_
#define KVCACHE_BENCH_TRACE_REPLAY_CHART_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace kvcache::bench {

// A line of a chart.
struct Curve {
  std::string name;       // escaped for HTML
  std::string css_class;  // sets the colour of `stroke` and `fill` by the page's style
  std::vector<double> y;  // [x], from 0 to 1
};

// Lines over x on a logarithmic axis, as an SVG element: the names stand at the right ends of the
// lines, as far as there is room, and every point says its value when the pointer is on it. Uses
// the classes grid, axis, line, dot, label, enough of the page. Ascending x; `enough` is a value of
// y that is marked by a line and `enough_label`.
struct Chart {
  std::vector<size_t> x;
  std::vector<std::string> x_labels;     // [x], below the axis
  std::vector<std::string> x_sublabels;  // [x], below those, or empty
  std::string x_title;
  std::string y_title;
  std::vector<Curve> curves;  // the last one is drawn on top
  double enough = 0;
  std::string enough_label;

  std::string Svg() const;
};

// Text for the inside of an element or an attribute.
std::string EscapeHtml(absl::string_view text);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_TRACE_REPLAY_CHART_H_
