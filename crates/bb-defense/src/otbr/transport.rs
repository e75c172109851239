//! Exact optimal transport between two small discrete measures, by the network simplex method.
//!
//! The decision this module embodies: masses and costs become integers before the first pivot, 2^62 units of mass in all
//! and costs to 47 bits or so. From there on everything is exact, so that the spanning trees can be kept strongly
//! feasible (Cunningham 1976) in the strict sense, which rules cycling out, and the same problem gives the same plan on
//! every machine. Plans are those of the rounded problem: a mass is off by 2^-62 of the total, a cost by 2^-47 of the
//! largest.

/// Units of mass in all.
const TOTAL: i64 = 1 << 62;

/// An optimal plan with the proof that it is one.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Sources.
    pub rows: usize,
    /// Targets.
    pub columns: usize,
    /// Where mass goes: source, target, share of the total. Sorted; a basis has at most `rows + columns - 1`.
    pub moves: Vec<(usize, usize, f64)>,
    /// Prices of sources and targets: `u[i] + v[j] <= cost[i][j]`, with equality where mass goes, which proves that no
    /// plan is cheaper.
    pub potentials: (Vec<f64>, Vec<f64>),
}

/// Measures or costs that make no problem.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransportError {
    /// A mass is negative or not a number, or there is none at all.
    #[error("the {side} masses are not numbers of at least 0 with a sum above 0")]
    Masses {
        /// Which side.
        side: &'static str,
    },
    /// The costs are not one for each pair.
    #[error("{found} costs, expected {expected}")]
    Count {
        /// One for each pair.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A cost is negative or not a number.
    #[error("cost {index} is not a finite number of at least 0")]
    Cost {
        /// Its place, row by row.
        index: usize,
    },
}

impl Plan {
    /// What the plan costs.
    pub fn cost(&self, costs: &[f64]) -> f64 {
        self.moves
            .iter()
            .map(|&(i, j, mass)| mass * costs[i * self.columns + j])
            .sum()
    }

    /// A plan from a table `[rows, columns]`, such as another solver gave it.
    pub fn from_dense(rows: usize, columns: usize, table: &[f32]) -> Self {
        let moves = table
            .iter()
            .enumerate()
            .filter(|(_, mass)| **mass > 0.0)
            .map(|(at, &mass)| (at / columns, at % columns, f64::from(mass)))
            .collect();
        Self {
            rows,
            columns,
            moves,
            potentials: (vec![0.0; rows], vec![0.0; columns]),
        }
    }
}

/// The cheapest way to bring `source` to `target`, both scaled to the sum 1, at `costs[i][j]` for a unit from `i` to
/// `j`.
pub fn solve(source: &[f64], target: &[f64], costs: &[f64]) -> Result<Plan, TransportError> {
    let supply = units(source, "source")?;
    let demand = units(target, "target")?;
    let (rows, columns) = (supply.len(), demand.len());
    if costs.len() != rows * columns {
        return Err(TransportError::Count {
            expected: rows * columns,
            found: costs.len(),
        });
    }
    if let Some(index) = costs.iter().position(|c| !(c.is_finite() && *c >= 0.0)) {
        return Err(TransportError::Cost { index });
    }
    let (whole, scale) = whole_costs(costs, rows + columns);
    let mut simplex = Simplex::new(&supply, &demand, &whole);
    simplex.run();
    Ok(simplex.plan(scale))
}

/// Masses in units that add up to [`TOTAL`].
fn units(masses: &[f64], side: &'static str) -> Result<Vec<i64>, TransportError> {
    let sum: f64 = masses.iter().sum();
    let good = masses.iter().all(|m| m.is_finite() && *m >= 0.0) && sum > 0.0 && sum.is_finite();
    if !good {
        return Err(TransportError::Masses { side });
    }
    let mut units: Vec<i64> = masses
        .iter()
        .map(|m| (m / sum * TOTAL as f64) as i64)
        .collect();
    // Rounding leaves a few units too many or too few; the largest mass bears them best.
    let rest = i128::from(TOTAL) - units.iter().map(|&u| i128::from(u)).sum::<i128>();
    let largest = (0..units.len()).fold(0, |best, i| if units[i] > units[best] { i } else { best });
    units[largest] += i64::try_from(rest).expect("a rounding error is small");
    Ok(units)
}

/// Costs as whole numbers, and what they were multiplied with: the largest power of two that leaves room for the prices
/// of `nodes` nodes.
fn whole_costs(costs: &[f64], nodes: usize) -> (Vec<i64>, f64) {
    let largest = costs.iter().copied().fold(0.0, f64::max);
    // Prices reach the cost of one artificial arc and of a way through all nodes, and are added to each other.
    let room = 2f64.powi(59) / (nodes as f64 + 2.0);
    let scale = if largest > 0.0 {
        2f64.powf((room / largest).log2().floor())
    } else {
        1.0
    };
    let whole = costs.iter().map(|c| (c * scale).round() as i64).collect();
    (whole, scale)
}

/// An arc of the spanning tree, seen from the node that is further from the root.
#[derive(Clone, Copy, Debug)]
struct Link {
    parent: usize,
    depth: usize,
    /// Mass on the arc.
    flow: i64,
    /// Whether the arc goes from the node to its parent.
    up: bool,
    /// Its cost.
    cost: i64,
}

/// Sources are nodes `0..rows`, targets follow, and the root is last. Every node has an artificial arc to or from the
/// root, over which all mass goes at first; real arcs of the tree are recognised by neither end being the root.
struct Simplex<'a> {
    rows: usize,
    columns: usize,
    costs: &'a [i64],
    links: Vec<Link>,
    /// Neighbours in the tree.
    neighbours: Vec<Vec<usize>>,
    /// Price of each node: 0 at the root, and `price[to] = price[from] + cost` along every arc of the tree.
    prices: Vec<i64>,
    /// Where the search for the next arc begins.
    next: usize,
}

impl<'a> Simplex<'a> {
    fn new(supply: &[i64], demand: &[i64], costs: &'a [i64]) -> Self {
        let (rows, columns) = (supply.len(), demand.len());
        let root = rows + columns;
        let nodes = i64::try_from(root + 1).expect("a problem that fits the memory");
        // Dearer than any way over real arcs.
        let dear = (costs.iter().copied().max().unwrap_or(0) + 1) * nodes;
        let mut links = Vec::with_capacity(root);
        let mut prices = vec![0; root + 1];
        // Without mass an arc must point to the root for the tree to be strongly feasible.
        for &mass in supply {
            links.push(Link {
                parent: root,
                depth: 1,
                flow: mass,
                up: true,
                cost: 0,
            });
        }
        for (j, &mass) in demand.iter().enumerate() {
            let up = mass == 0;
            let cost = if up { 0 } else { dear };
            links.push(Link {
                parent: root,
                depth: 1,
                flow: mass,
                up,
                cost,
            });
            prices[rows + j] = cost;
        }
        let mut neighbours = vec![vec![root]; root];
        neighbours.push((0..root).collect());
        Self {
            rows,
            columns,
            costs,
            links,
            neighbours,
            prices,
            next: 0,
        }
    }

    fn run(&mut self) {
        while let Some((source, target)) = self.entering() {
            self.pivot(source, target);
        }
    }

    /// A pair that is cheaper than its prices say: the best one of the first block of pairs that has any.
    fn entering(&mut self) -> Option<(usize, usize)> {
        let pairs = self.costs.len();
        let block = (pairs as f64).sqrt().ceil() as usize;
        let mut seen = 0;
        while seen < pairs {
            let (mut best, mut least) = (None, 0);
            let end = (seen + block).min(pairs);
            while seen < end {
                let at = self.next;
                let (i, j) = (at / self.columns, at % self.columns);
                let reduced = self.costs[at] + self.prices[i] - self.prices[self.rows + j];
                if reduced < least {
                    (best, least) = (Some((i, self.rows + j)), reduced);
                }
                self.next = if at + 1 == pairs { 0 } else { at + 1 };
                seen += 1;
            }
            if best.is_some() {
                return best;
            }
        }
        None
    }

    /// Sends as much as possible around the cycle that the arc closes, and swaps it for the arc that ran empty.
    fn pivot(&mut self, source: usize, target: usize) {
        let join = self.join(source, target);
        // Of several arcs that run empty, the last one on the cycle from the join on is taken.
        let mut most = i64::MAX;
        let mut leaving = source;
        for node in self.way(source, join) {
            let link = self.links[node];
            if link.up && link.flow < most {
                (most, leaving) = (link.flow, node);
            }
        }
        let mut from_source = true;
        for node in self.way(target, join) {
            let link = self.links[node];
            if !link.up && link.flow <= most {
                (most, leaving, from_source) = (link.flow, node, false);
            }
        }
        assert!(most < i64::MAX, "no cycle of the network is all forward");
        for node in self.way(source, join) {
            let link = &mut self.links[node];
            link.flow += if link.up { -most } else { most };
        }
        for node in self.way(target, join) {
            let link = &mut self.links[node];
            link.flow += if link.up { most } else { -most };
        }
        let parent = self.links[leaving].parent;
        self.neighbours[parent].retain(|&n| n != leaving);
        self.neighbours[leaving].retain(|&n| n != parent);
        let cost = self.costs[source * self.columns + target - self.rows];
        // The side that was cut off hangs at the new arc.
        let (node, parent) = if from_source {
            (source, target)
        } else {
            (target, source)
        };
        let link = Link {
            parent,
            depth: 0,
            flow: most,
            up: from_source,
            cost,
        };
        self.rehang(node, link);
        self.neighbours[source].push(target);
        self.neighbours[target].push(source);
    }

    /// The nodes from `node` up to, and without, `end`.
    fn way(&self, node: usize, end: usize) -> Vec<usize> {
        let mut nodes = Vec::new();
        let mut at = node;
        while at != end {
            nodes.push(at);
            at = self.links[at].parent;
        }
        nodes
    }

    fn depth(&self, node: usize) -> usize {
        self.links.get(node).map_or(0, |link| link.depth)
    }

    /// The first node that the ways of both to the root have in common.
    fn join(&self, a: usize, b: usize) -> usize {
        let (mut a, mut b) = (a, b);
        while a != b {
            if self.depth(a) >= self.depth(b) {
                a = self.links[a].parent;
            } else {
                b = self.links[b].parent;
            }
        }
        a
    }

    /// Makes `node` the top of the part of the tree that was cut off, hung up by `link`, and sets everything below it.
    fn rehang(&mut self, node: usize, link: Link) {
        // The arcs from `node` to the old top turn over: each node on the way takes the arc of the one before it.
        let (mut at, mut link) = (node, link);
        let old_top = loop {
            let old = std::mem::replace(&mut self.links[at], link);
            if !self.neighbours[at].contains(&old.parent) {
                break at;
            }
            link = Link {
                parent: at,
                up: !old.up,
                ..old
            };
            at = old.parent;
        };
        debug_assert!(old_top < self.links.len(), "the root is never cut off");
        let mut todo = vec![node];
        while let Some(at) = todo.pop() {
            let link = self.links[at];
            let above = self.prices[link.parent];
            self.prices[at] = if link.up {
                above - link.cost
            } else {
                above + link.cost
            };
            self.links[at].depth = self.depth(link.parent) + 1;
            let below = self.neighbours[at].iter().copied();
            todo.extend(below.filter(|&n| n != link.parent));
        }
    }

    fn plan(&self, scale: f64) -> Plan {
        let root = self.rows + self.columns;
        let mut moves = Vec::new();
        for (node, link) in self.links.iter().enumerate() {
            if link.flow == 0 {
                continue;
            }
            assert_ne!(link.parent, root, "as much is sent as is asked for");
            let (i, j) = if node < self.rows {
                (node, link.parent)
            } else {
                (link.parent, node)
            };
            moves.push((i, j - self.rows, link.flow as f64 / TOTAL as f64));
        }
        moves.sort_unstable_by_key(|&(i, j, _)| (i, j));
        let price = |node: usize| self.prices[node] as f64 / scale;
        Plan {
            rows: self.rows,
            columns: self.columns,
            moves,
            potentials: (
                (0..self.rows).map(|i| -price(i)).collect(),
                (self.rows..root).map(price).collect(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bb_core::rng;
    use proptest::prelude::*;

    /// Fails unless the plan has the marginals and its prices prove it optimal.
    #[track_caller]
    fn check(source: &[f64], target: &[f64], costs: &[f64], plan: &Plan) {
        let (sums, dear) = (
            (source.iter().sum::<f64>(), target.iter().sum::<f64>()),
            costs.iter().copied().fold(1e-30, f64::max),
        );
        let (mut out, mut into) = (vec![0.0; source.len()], vec![0.0; target.len()]);
        let (u, v) = &plan.potentials;
        for &(i, j, mass) in &plan.moves {
            assert!(mass > 0.0);
            out[i] += mass;
            into[j] += mass;
            let slack = costs[i * target.len() + j] - u[i] - v[j];
            assert!(slack.abs() <= 1e-9 * dear, "mass at slack {slack}");
        }
        for (found, wanted) in out.iter().zip(source.iter().map(|m| m / sums.0)) {
            assert!((found - wanted).abs() < 1e-12, "{found} of {wanted}");
        }
        for (found, wanted) in into.iter().zip(target.iter().map(|m| m / sums.1)) {
            assert!((found - wanted).abs() < 1e-12, "{found} of {wanted}");
        }
        for (at, &cost) in costs.iter().enumerate() {
            let slack = cost - u[at / target.len()] - v[at % target.len()];
            assert!(slack >= -1e-9 * dear, "pair {at} is cheaper by {slack}");
        }
        assert!(plan.moves.len() < source.len() + target.len(), "a basis");
        // What the prices say the plan is worth is what it costs.
        let worth: f64 = u.iter().zip(&out).map(|(u, m)| u * m).sum::<f64>()
            + v.iter().zip(&into).map(|(v, m)| v * m).sum::<f64>();
        assert!((worth - plan.cost(costs)).abs() <= 1e-9 * dear);
    }

    /// The least sum of costs over all ways to pair sources with targets.
    fn best_pairing(costs: &[f64], size: usize, row: usize, used: &mut Vec<bool>) -> f64 {
        if row == size {
            return 0.0;
        }
        let mut best = f64::INFINITY;
        for j in 0..size {
            if !used[j] {
                used[j] = true;
                let rest = best_pairing(costs, size, row + 1, used);
                best = best.min(costs[row * size + j] + rest);
                used[j] = false;
            }
        }
        best
    }

    #[test]
    fn plans_by_hand() {
        // The case of one pruned and one whole neuron: two plans cost the same.
        let (source, target, costs) = ([0.5, 0.5], [0.75, 0.25], [2.0, 1.0, 1.0, 0.0]);
        let plan = solve(&source, &target, &costs).expect("a problem");
        check(&source, &target, &costs, &plan);
        assert!((plan.cost(&costs) - 1.25).abs() < 1e-15);
        // Nothing to choose.
        let plan = solve(&[3.0], &[1.0, 0.0, 2.0], &[5.0, 1.0, 2.0]).expect("a problem");
        let third = 1.0 / 3.0;
        for (&(i, j, mass), (target, wanted)) in
            plan.moves.iter().zip([(0, third), (2, 2.0 * third)])
        {
            assert_eq!((i, j), (0, target));
            assert!((mass - wanted).abs() < 1e-15);
        }
        assert_eq!(plan.moves.len(), 2);
        // Equal measures stay where they are.
        let zero_diagonal: Vec<f64> = (0..25)
            .map(|at| if at % 6 == 0 { 0.0 } else { 1.0 })
            .collect();
        let plan = solve(&[1.0; 5], &[1.0; 5], &zero_diagonal).expect("a problem");
        assert!(plan.moves.iter().all(|&(i, j, _)| i == j), "{plan:?}");
    }

    #[test]
    fn what_is_no_problem_is_refused() {
        let masses = |side| Err(TransportError::Masses { side });
        assert_eq!(solve(&[], &[1.0], &[]), masses("source"));
        assert_eq!(solve(&[1.0], &[0.0, 0.0], &[1.0; 2]), masses("target"));
        assert_eq!(solve(&[1.0, -1.0], &[1.0], &[1.0; 2]), masses("source"));
        assert_eq!(solve(&[1.0], &[f64::NAN], &[1.0]), masses("target"));
        let count = TransportError::Count {
            expected: 1,
            found: 2,
        };
        assert_eq!(solve(&[1.0], &[1.0], &[1.0; 2]), Err(count));
        for cost in [f64::NAN, -1.0, f64::INFINITY] {
            let costs = [0.0, cost];
            let found = solve(&[1.0], &[1.0, 1.0], &costs);
            assert_eq!(found, Err(TransportError::Cost { index: 1 }));
        }
    }

    /// The size of the widest layer, with a third of the rows alike as pruned neurons are.
    #[test]
    fn the_widest_layer_is_solved_exactly() {
        const SIZE: usize = 512;
        let mut stream = rng::stream(0, "transport/test", 0, 0);
        let rows: Vec<f64> = (0..SIZE).map(|_| rng::unit_f64(&mut stream)).collect();
        let costs: Vec<f64> = (0..SIZE * SIZE)
            .map(|at| {
                let (i, j) = (at / SIZE, at % SIZE);
                if i % 3 == 0 {
                    1.0 + rows[j]
                } else if i == j {
                    0.0
                } else {
                    1.0 + rng::unit_f64(&mut stream)
                }
            })
            .collect();
        let target: Vec<f64> = (0..SIZE)
            .map(|_| rng::unit_f64(&mut stream).powi(3))
            .collect();
        let source = vec![1.0; SIZE];
        let plan = solve(&source, &target, &costs).expect("a problem");
        check(&source, &target, &costs, &plan);
        assert_eq!(solve(&source, &target, &costs), Ok(plan));
    }

    proptest! {
        #[test]
        fn prices_prove_every_plan_optimal(
            source in prop::collection::vec(0.0f64..1.0, 1..12), target in prop::collection::vec(0.0f64..1.0, 1..12),
            whole in any::<bool>(), seed in any::<u64>(),
        ) {
            // Whole numbers make many plans cost the same and many masses run out together.
            let round = |v: &f64| if whole { (v * 3.0).floor() } else { *v };
            let (source, target): (Vec<f64>, Vec<f64>) =
                (source.iter().map(round).collect(), target.iter().map(round).collect());
            prop_assume!(source.iter().sum::<f64>() > 0.0 && target.iter().sum::<f64>() > 0.0);
            let mut stream = rng::stream(seed, "transport/costs", 0, 0);
            let costs: Vec<f64> = (0..source.len() * target.len())
                .map(|_| if whole { rng::below(&mut stream, 3) as f64 } else { rng::unit_f64(&mut stream) })
                .collect();
            let plan = solve(&source, &target, &costs).expect("a problem");
            check(&source, &target, &costs, &plan);
        }

        /// With equal masses the cheapest plan is a pairing.
        #[test]
        fn equal_masses_are_an_assignment(size in 1usize..7, values in prop::collection::vec(0.0f64..1.0, 36)) {
            let costs = &values[..size * size];
            let masses = vec![1.0; size];
            let plan = solve(&masses, &masses, costs).expect("a problem");
            let best = best_pairing(costs, size, 0, &mut vec![false; size]) / size as f64;
            prop_assert!((plan.cost(costs) - best).abs() < 1e-12, "{} against {best}", plan.cost(costs));
        }
    }
}
