#include "kvcache/bench/trace_replay/chart.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace kvcache::bench {
namespace {

// In units of the drawing, which the page scales.
constexpr double kWidth = 960;
constexpr double kHeight = 500;
constexpr double kLeft = 62;
constexpr double kRight = 120;
constexpr double kTop = 16;
constexpr double kBottom = 74;
constexpr double kLabelHeight = 17;
constexpr double kTickWidth = 58;

// A round number so that at most 8 of it make `most`.
double TickOf(double most) {
  const double raw = most / 8;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  for (double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw) return factor * power;
  }
  return 10 * power;
}

// Moves labels apart so that none covers another; keeps their order.
void Spread(std::vector<double>* y, double top, double bottom) {
  std::vector<size_t> order(y->size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [y](size_t a, size_t b) { return (*y)[a] < (*y)[b]; });
  double least = top;
  for (size_t i : order) {
    (*y)[i] = std::max((*y)[i], least);
    least = (*y)[i] + kLabelHeight;
  }
  double most = bottom;
  for (auto i = order.rbegin(); i != order.rend(); ++i) {
    (*y)[*i] = std::min((*y)[*i], most);
    most = (*y)[*i] - kLabelHeight;
  }
}

class Drawing {
 public:
  explicit Drawing(const Chart& chart) : chart_(chart) {
    double most = chart.enough;
    for (const Curve& curve : chart.curves) {
      for (double y : curve.y) most = std::max(most, y);
    }
    most_ = most > 0 ? most : 1;
    tick_ = TickOf(most_);
    most_ = std::ceil(most_ / tick_ - 1e-9) * tick_;
    low_ = std::log(static_cast<double>(chart.x.front()));
    high_ = std::log(static_cast<double>(chart.x.back()));
  }

  std::string Svg() {
    svg_ = absl::StrFormat("<svg viewBox=\"0 0 %g %g\" role=\"img\" aria-label=\"%s over %s\">\n",
                           kWidth, kHeight, chart_.y_title, chart_.x_title);
    DrawAxes();
    DrawEnough();
    for (const Curve& curve : chart_.curves) DrawCurve(curve);
    DrawNames();
    return absl::StrCat(svg_, "</svg>\n");
  }

 private:
  double X(size_t i) const {
    const double width = kWidth - kLeft - kRight;
    if (high_ == low_) return kLeft + width / 2;
    return kLeft + width * (std::log(static_cast<double>(chart_.x[i])) - low_) / (high_ - low_);
  }
  double Y(double value) const {
    return kHeight - kBottom - (kHeight - kBottom - kTop) * value / most_;
  }

  void DrawAxes() {
    const double right = kWidth - kRight;
    const double bottom = kHeight - kBottom;
    for (int i = 0; i * tick_ <= most_ + tick_ / 2; ++i) {
      absl::StrAppendFormat(&svg_,
                            "<line class=\"grid\" x1=\"%g\" x2=\"%g\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
                            kLeft, right, Y(i * tick_), Y(i * tick_));
      absl::StrAppendFormat(&svg_,
                            "<text class=\"axis\" x=\"%g\" y=\"%.1f\" text-anchor=\"end\" "
                            "dy=\".35em\">%g %%</text>\n",
                            kLeft - 10, Y(i * tick_), 100 * i * tick_);
    }
    double free_from = 0;
    for (size_t i = 0; i < chart_.x.size(); ++i) {
      absl::StrAppendFormat(&svg_,
                            "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%g\" y2=\"%g\"/>\n",
                            X(i), X(i), kTop, bottom);
      if (X(i) < free_from) continue;
      free_from = X(i) + kTickWidth;
      DrawTick(X(i), bottom + 20, chart_.x_labels[i]);
      if (!chart_.x_sublabels.empty()) DrawTick(X(i), bottom + 37, chart_.x_sublabels[i]);
    }
    DrawTick((kLeft + right) / 2, kHeight - 12, chart_.x_title);
    absl::StrAppendFormat(&svg_,
                          "<text class=\"axis\" transform=\"translate(13 %g) rotate(-90)\" "
                          "text-anchor=\"middle\">%s</text>\n",
                          (kTop + bottom) / 2, chart_.y_title);
  }

  void DrawTick(double x, double y, absl::string_view text) {
    absl::StrAppendFormat(
        &svg_, "<text class=\"axis\" x=\"%.1f\" y=\"%g\" text-anchor=\"middle\">%s</text>\n", x, y,
        text);
  }

  void DrawEnough() {
    if (chart_.enough <= 0) return;
    absl::StrAppendFormat(&svg_,
                          "<line class=\"enough\" x1=\"%g\" x2=\"%g\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
                          kLeft, kWidth - kRight, Y(chart_.enough), Y(chart_.enough));
    absl::StrAppendFormat(&svg_, "<text class=\"axis\" x=\"%g\" y=\"%.1f\">%s</text>\n", kLeft + 8,
                          Y(chart_.enough) - 6, chart_.enough_label);
  }

  void DrawCurve(const Curve& curve) {
    absl::StrAppendFormat(&svg_, "<g class=\"%s\">\n<polyline class=\"line\" points=\"",
                          curve.css_class);
    for (size_t i = 0; i < chart_.x.size(); ++i) {
      absl::StrAppendFormat(&svg_, "%s%.1f,%.1f", i == 0 ? "" : " ", X(i), Y(curve.y[i]));
    }
    absl::StrAppend(&svg_, "\"/>\n");
    for (size_t i = 0; i < chart_.x.size(); ++i) {
      absl::StrAppendFormat(
          &svg_,
          "<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"><title>%s, %s: "
          "%.2f %%</title></circle>\n",
          X(i), Y(curve.y[i]), curve.name, chart_.x_labels[i], 100 * curve.y[i]);
    }
    absl::StrAppend(&svg_, "</g>\n");
  }

  void DrawNames() {
    std::vector<double> y;
    for (const Curve& curve : chart_.curves) y.push_back(Y(curve.y.back()));
    Spread(&y, kTop + 4, kHeight - kBottom);
    const double end = X(chart_.x.size() - 1);
    for (size_t i = 0; i < y.size(); ++i) {
      const Curve& curve = chart_.curves[i];
      absl::StrAppendFormat(
          &svg_,
          "<g class=\"%s\"><path class=\"leader\" d=\"M%.1f %.1fL%g %.1f\"/>"
          "<text class=\"label\" x=\"%g\" y=\"%.1f\" dy=\".35em\">%s</text></g>\n",
          curve.css_class, end + 5, Y(curve.y.back()), end + 22, y[i], end + 26, y[i], curve.name);
    }
  }

  const Chart& chart_;
  double most_;
  double tick_;
  double low_;
  double high_;
  std::string svg_;
};

}  // namespace

std::string Chart::Svg() const { return x.empty() ? "" : Drawing(*this).Svg(); }

std::string EscapeHtml(absl::string_view text) {
  return absl::StrReplaceAll(
      text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}});
}

}  // namespace kvcache::bench
