// Sample-by-sample learning. Units lie in lanes, [block][feature][unit]: a block is read once for each sample, moved
// towards the last one and measured against the next.
#include "kernels/som.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/choose.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace pykernels {
namespace {

constexpr double kGrain = 4e4;  // values of the codebook worth a thread, with a barrier for each sample

// The best unit so far: the lowest of those equally far away; what is not a number never is.
template <typename T>
struct Winner {
    T measure = std::numeric_limits<T>::infinity();
    int64_t unit = -1;

    void consider(T other, int64_t number) {
        if (other < measure || (other == measure && (unit < 0 || number < unit))) *this = {other, number};
    }
};

template <typename T>
class Learner {
    static constexpr int width = kWidth<T>;

  public:
    Learner(const SomLearn<T>& call, int threads)
        : call_(call),
          blocks_((call.units + width - 1) / width),
          units_(blocks_ * call.features * width),
          places_(2 * blocks_ * width),
          winners_(2 * threads) {}

    // One thread's part; all threads of the team come here.
    void run(const Team& team) {
        const Range mine = share(blocks_, team.rank, team.size);
        for (int64_t block = mine.begin; block < mine.end; ++block) take(block);
        winner(0, team.rank) = {};
        for (int64_t block = mine.begin; block < mine.end; ++block) measure(block, 0, winner(0, team.rank));
        for (int64_t n = 0; n < call_.samples; ++n) {
            team.wait();
            Winner<T> best;
            for (int t = 0; t < team.size; ++t)
                if (winner(n, t).unit >= 0) best.consider(winner(n, t).measure, winner(n, t).unit);
            if (team.rank == 0) call_.distance[n] = distance_of(best);
            Winner<T>& next = winner(n + 1, team.rank);
            next = {};
            for (int64_t block = mine.begin; block < mine.end; ++block) {
                if (best.unit >= 0) move(block, n, best.unit);
                if (n + 1 < call_.samples) measure(block, n + 1, next);
            }
        }
        for (int64_t block = mine.begin; block < mine.end; ++block) give_back(block);
    }

  private:
    // Of thread `rank`, for sample n. (A thread that is one sample ahead does not overwrite what others still read.)
    Winner<T>& winner(int64_t n, int rank) {
        return winners_[(n % 2) * (static_cast<int64_t>(winners_.size()) / 2) + rank].winner;
    }
    T* row(int64_t block, int64_t feature) const { return units_ + (block * call_.features + feature) * width; }

    T distance_of(const Winner<T>& best) const {
        if (best.unit < 0) return std::numeric_limits<T>::quiet_NaN();
        if (call_.metric == Metric::kEuclidean) return std::sqrt(best.measure);
        return std::max(best.measure, T(0));
    }

    void take(int64_t block) {
        for (int lane = 0; lane < width; ++lane) {
            const int64_t unit = std::min(block * width + lane, call_.units - 1);
            for (int64_t d = 0; d < call_.features; ++d)
                row(block, d)[lane] = call_.codebook[unit * call_.features + d];
            for (int axis = 0; axis < 2; ++axis)
                places_[(2 * block + axis) * width + lane] = static_cast<T>(call_.coordinates[2 * unit + axis]);
        }
    }
    void give_back(int64_t block) const {
        for (int lane = 0; lane < width && block * width + lane < call_.units; ++lane)
            for (int64_t d = 0; d < call_.features; ++d)
                call_.codebook[(block * width + lane) * call_.features + d] = row(block, d)[lane];
    }

    // (The lanes beyond the last unit are copies of it, which come after it and so never win.)
    void measure(int64_t block, int64_t n, Winner<T>& best) const {
        alignas(64) T measures[width];
        measure_lanes(block, call_.input + n * call_.features).store(measures);
        for (int lane = 0; lane < width; ++lane)
            if (measures[lane] <= best.measure) best.consider(measures[lane], block * width + lane);
    }

    Vec<T> measure_lanes(int64_t block, const T* x) const {
        Vec<T> sum(T(0)), more(T(0));
        const T* w = row(block, 0);
        if (call_.metric == Metric::kEuclidean) {
            for (int64_t d = 0; d < call_.features; ++d, w += width) {
                const auto apart = Vec<T>(x[d]) - Vec<T>::loadu(w);
                sum = at::vec::fmadd(apart, apart, sum);
            }
            return sum;
        }
        if (call_.metric == Metric::kManhattan) {
            for (int64_t d = 0; d < call_.features; ++d, w += width)
                sum = sum + (Vec<T>(x[d]) - Vec<T>::loadu(w)).abs();
            return sum;
        }
        T size = 0;
        for (int64_t d = 0; d < call_.features; ++d, w += width) {
            const auto unit = Vec<T>::loadu(w);
            sum = at::vec::fmadd(Vec<T>(x[d]), unit, sum);
            more = at::vec::fmadd(unit, unit, more);
            size += x[d] * x[d];
        }
        const auto norms = (more * Vec<T>(size)).sqrt();
        const auto cosine = Larger<T>(norms, Vec<T>(T(0))).choose(sum / norms, norms * sum);  // (0, or not a number)
        return Vec<T>(T(1)) - cosine;
    }

    // Squared distances on the grid between a block's units and another one.
    Vec<T> squares_on_grid(int64_t block, int64_t unit) const {
        Vec<T> squares(T(0));
        for (int axis = 0; axis < 2; ++axis) {
            const T at = static_cast<T>(call_.coordinates[2 * unit + axis]), period = T(call_.periods[axis]);
            auto apart = (Vec<T>::loadu(places_ + (2 * block + axis) * width) - Vec<T>(at)).abs();
            if (period > 0) apart = at::vec::minimum(apart, Vec<T>(period) - apart);
            squares = at::vec::fmadd(apart, apart, squares);
        }
        return squares;
    }

    Vec<T> neighbourhood(const Vec<T>& squares, double sigma) const {
        if (call_.neighbourhood == Neighbourhood::kBubble)
            return Larger<T>(squares, Vec<T>(static_cast<T>(bubble_reach(sigma)))).choose(Vec<T>(T(0)), Vec<T>(T(1)));
        const auto scaled = squares * Vec<T>(static_cast<T>(1 / (sigma * sigma)));
        const auto bell = (scaled * Vec<T>(T(-0.5))).exp();
        if (call_.neighbourhood == Neighbourhood::kGaussian) return bell;
        return at::vec::fnmadd(scaled, Vec<T>(T(1) / call_.dimensions), Vec<T>(T(1))) * bell;
    }

    void move(int64_t block, int64_t n, int64_t best) const {
        const auto share = neighbourhood(squares_on_grid(block, best), call_.sigma[n]);
        const auto step = share * Vec<T>(static_cast<T>(call_.rate[n]));
        if (!Larger<T>(step.abs(), Vec<T>(kRounding)).bits()) return;  // less than what the sum would keep
        const T* x = call_.input + n * call_.features;
        const T* const low = call_.bounds;
        T* w = row(block, 0);
        for (int64_t d = 0; d < call_.features; ++d, w += width) {
            const auto unit = Vec<T>::loadu(w);
            auto moved = at::vec::fmadd(step, Vec<T>(x[d]) - unit, unit);
            if (call_.bounds) moved = at::vec::clamp(moved, Vec<T>(low[d]), Vec<T>(low[call_.features + d]));
            moved.store(w);
        }
    }

    static constexpr T kRounding = std::numeric_limits<T>::epsilon() / 8;

    struct alignas(64) Apart {
        Winner<T> winner;
    };
    const SomLearn<T>& call_;
    const int64_t blocks_;
    const Buffer<T> units_, places_;
    std::vector<Apart> winners_;
};

template <typename T>
void run(const SomLearn<T>& call) {
    if (call.samples == 0) return;
    const int threads = threads_for(static_cast<double>(call.units) * static_cast<double>(call.features), kGrain);
    Learner<T> learner(call, threads);
    parallel_region(threads, [&](const Team& team) { learner.run(team); });
}

}  // namespace

void som_learn(const SomLearn<float>& call) { run(call); }
void som_learn(const SomLearn<double>& call) { run(call); }

}  // namespace pykernels
