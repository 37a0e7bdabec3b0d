// Blocks of places are shared out among the threads.
#include "kernels/conv_planar_tiles.h"

namespace pykernels {
namespace {

template <typename Call>
class PlanarProduct {
    using Op = typename Call::Op;
    using Plan = ColumnPlan<typename Call::S, Op>;

  public:
    explicit PlanarProduct(const Call& call) : call_(call), plan_(plan_for(call)) {}

    void run() const {
        const int64_t columns = call_.batch * call_.places();
        if (columns == 0 || call_.rows == 0) return;
        const double depth = static_cast<double>(call_.channels * call_.taps() + 4);
        parallel_region(threads_for(static_cast<double>(columns) * call_.groups * call_.rows * depth, kConvGrain),
                        [&](const Team& team) { part(team); });
    }

  private:
    // A thread's part: some vectors of columns of some groups, and some rows. Threads are side by side along the
    // columns, and along the rows where there are few columns.
    void part(const Team& team) const {
        const int64_t vectors = plan_.vectors();
        const int across = threads_across(team.size, vectors * call_.groups, call_.rows, kTileRows, Plan::kGatherRows);
        const int along = team.size / across;
        if (team.rank >= along * across) return;
        const Range mine = share(vectors * call_.groups, team.rank / across, along);
        const Range rows = share(call_.rows, team.rank % across, across, kTileRows);
        if (mine.size() <= 0 || rows.size() <= 0) return;
        PlanarTiles<Call> tiles(call_, plan_, rows);
        Plan plan = plan_;
        for (int64_t at = mine.begin; at < mine.end;) {
            const int64_t group = at / vectors, first = group * vectors, last = std::min(mine.end - first, vectors);
            const int64_t next = plan.block_end(at - first, last, tiles.most());
            plan.plan(at - first, next, kTileVectors);
            tiles.block(plan, group, call_.source + group * call_.channels * call_.pixels(),
                        call_.out + group * call_.rows * call_.extent());
            at = first + next;
        }
    }

    const Call& call_;
    Plan plan_;
};

}  // namespace

void planar_product(const PlanarCall<float, ProductOperandOf<float>>& call) { PlanarProduct(call).run(); }
void planar_product(const PlanarCall<double, ProductOperandOf<double>>& call) { PlanarProduct(call).run(); }
void planar_product(const PlanarCall<c10::BFloat16, ProductOperandOf<c10::BFloat16>>& call) {
    PlanarProduct(call).run();
}
void planar_product(const PlanarCall<c10::Half, ProductOperandOf<c10::Half>>& call) { PlanarProduct(call).run(); }

}  // namespace pykernels
