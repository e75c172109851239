//! Ratings against their definition and against published tables.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use bb_core::metrics::{METRICS, Rates, Ratio, Scores, Summary, der, mean, metric, rir, std_dev};
use proptest::prelude::*;

/// Half a unit of the second decimal, and what two-digit inputs may add to it.
const ROUNDING: f64 = 0.0051;

fn ratio(hits: u64, total: u64) -> Ratio {
    Ratio { hits, total }
}

fn scores(acc: u64, asr: u64, ra: u64) -> Scores {
    Scores {
        acc: ratio(acc, 10_000),
        asr: ratio(asr, 9_000),
        ra: ratio(ra, 9_000),
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-12
}

#[test]
fn golden_der_of_published_cells() {
    for (before, after, der) in [
        ((91.32, 95.03), (89.96, 1.48), 96.095),
        ((84.48, 98.27), (90.80, 2.37), 97.95),
        ((91.32, 95.03), (91.32, 95.03), 50.0),
        // A rise of either is ignored.
        ((91.32, 95.03), (99.0, 99.0), 50.0),
        ((91.32, 95.03), (90.32, 99.0), 49.5),
        ((100.0, 0.0), (0.0, 100.0), 0.0),
        ((0.0, 100.0), (100.0, 0.0), 100.0),
    ] {
        let before = Rates::from_percent(before.0, before.1, None);
        let after = Rates::from_percent(after.0, after.1, None);
        let found = 100.0 * after.der(&before);
        assert!(close(found, der), "{found} instead of {der}");
        assert_eq!(after.rir(&before), None);
    }
}

/// A row of `tsbd_cifar10_preactresnet18.csv`, in percent.
struct Row {
    attack: String,
    defense: String,
    rates: Rates,
    der: Option<f64>,
}

fn table(text: &str) -> Vec<Row> {
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("attack,defense,acc,asr,der"));
    lines
        .map(|line| {
            let cells: Vec<&str> = line.split(',').collect();
            let &[attack, defense, acc, asr, der] = &cells[..] else {
                panic!("a row has five cells: {line}");
            };
            let number = |cell: &str| cell.parse::<f64>().expect("the cell holds a number");
            Row {
                attack: attack.to_owned(),
                defense: defense.to_owned(),
                rates: Rates::from_percent(number(acc), number(asr), None),
                der: (!der.is_empty()).then(|| number(der)),
            }
        })
        .collect()
}

#[test]
#[ignore = "needs BB_SHARED"]
fn golden_der_of_the_tsbd_table() {
    /// The one cell whose printed DER does not follow from its printed ACC and ASR: attack, defense, printed, formula.
    const MISPRINT: (&str, &str, f64, f64) = ("BadNets", "TSBD", 96.53, 96.56);

    let shared = std::env::var_os("BB_SHARED").expect("BB_SHARED names the folder of the tables");
    let shared = PathBuf::from(shared);
    let path = shared.join("reference/tables/tsbd_cifar10_preactresnet18.csv");
    let rows = table(&fs_err::read_to_string(path).expect("the shared folder has this table"));
    let (averages, rows): (Vec<Row>, Vec<Row>) =
        rows.into_iter().partition(|row| row.attack == "Average");
    let undefended: BTreeMap<&str, &Rates> = rows
        .iter()
        .filter(|row| row.der.is_none())
        .map(|row| (row.attack.as_str(), &row.rates))
        .collect();

    let mut ders: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut misprints = 0;
    for row in &rows {
        let Some(printed) = row.der else { continue };
        let found = 100.0 * row.rates.der(undefended[row.attack.as_str()]);
        let expected = if (row.attack.as_str(), row.defense.as_str()) == (MISPRINT.0, MISPRINT.1) {
            assert!(close(printed, MISPRINT.2), "the table has been changed");
            misprints += 1;
            MISPRINT.3
        } else {
            printed
        };
        assert!(
            (found - expected).abs() < ROUNDING,
            "{} / {}: {found} instead of {expected}",
            row.attack,
            row.defense
        );
        ders.entry(&row.defense).or_default().push(found);
    }
    assert_eq!((undefended.len(), ders.len(), misprints), (8, 9, 1));

    // The printed average of DER is the mean of the eight ratings, not the rating of the mean scores.
    for average in &averages {
        let Some(printed) = average.der else { continue };
        let found = mean(&ders[average.defense.as_str()]).expect("there are eight");
        assert!(
            (found - printed).abs() < 2.0 * ROUNDING,
            "{}: {found} instead of {printed}",
            average.defense
        );
    }
}

#[test]
fn ratings_of_counts_are_those_of_their_fractions() {
    let before = scores(9_132, 8_553, 400);
    let after = scores(8_996, 133, 8_000);
    let expected = f64::midpoint(8_420.0 / 9_000.0 - 0.0136, 1.0);
    assert!(close(
        der(&before, &after).expect("there are images"),
        expected
    ));
    let expected = f64::midpoint(7_600.0 / 9_000.0 - 0.0136, 1.0);
    assert!(close(
        rir(&before, &after).expect("there are images"),
        expected
    ));

    let none = Scores {
        asr: ratio(0, 0),
        ra: ratio(0, 0),
        ..after
    };
    assert_eq!(der(&before, &none), None);
    assert_eq!(der(&none, &after), None);
    assert_eq!(rir(&before, &none), None);
}

#[test]
fn ratios_count_and_join() {
    let mut all = Ratio::count([true, false, true]);
    assert_eq!(all, ratio(2, 3));
    all += Ratio::count([true]);
    assert_eq!(all, ratio(3, 4));
    assert_eq!(all.percent(), Some(75.0));
    assert_eq!(all.to_string(), "3/4");
    assert_eq!(Ratio::default().value(), None);
    assert_eq!(Ratio::default().percent(), None);
}

#[test]
fn scores_in_files_are_checked() {
    let good = scores(9_132, 8_553, 400);
    let text = serde_json::to_string(&good).expect("scores are plain data");
    assert_eq!(
        serde_json::from_str::<Scores>(&text).expect("it was written"),
        good
    );
    for (text, message) in [
        (
            r#"{"hits":5,"total":4}"#,
            "`hits` is 5, expected at most `total`, which is 4",
        ),
        (r#"{"hits":-1,"total":4}"#, "invalid value"),
        (r#"{"hits":1.5,"total":4}"#, "invalid type"),
        (r#"{"hits":1}"#, "missing field `total`"),
        (r#"{"hits":1,"total":4,"of":2}"#, "unknown field `of`"),
    ] {
        let error = serde_json::from_str::<Ratio>(text)
            .expect_err(text)
            .to_string();
        assert!(error.starts_with(message), "{text}: {error}");
    }
}

#[test]
fn metrics_have_distinct_names_and_a_direction() {
    let ids: BTreeSet<_> = METRICS.iter().map(|metric| metric.id).collect();
    let titles: BTreeSet<_> = METRICS.iter().map(|metric| metric.title).collect();
    assert_eq!((ids.len(), titles.len()), (METRICS.len(), METRICS.len()));

    let before = scores(9_132, 8_553, 400);
    let after = scores(8_996, 133, 8_000);
    for (id, expected, alone, arrow) in [
        ("acc", Some(0.8996), true, '↑'),
        ("asr", Some(133.0 / 9_000.0), true, '↓'),
        ("ra", Some(8_000.0 / 9_000.0), true, '↑'),
        ("der", der(&before, &after), false, '↑'),
        ("rir", rir(&before, &after), false, '↑'),
    ] {
        let metric = metric(id).expect("the list has it");
        assert_eq!(metric.value(Some(&before), &after), expected, "{id}");
        assert_eq!(metric.value(None, &after).is_some(), alone, "{id}");
        assert_eq!(metric.arrow(), arrow, "{id}");
        assert_eq!(metric.is_better(0.9, 0.1), metric.higher_is_better, "{id}");
        assert!(!metric.is_better(0.5, 0.5), "{id}");
        assert!(close(metric.unit.shown(0.5), 50.0), "{id}");
        assert_eq!(metric.unit.symbol(), "%", "{id}");
    }
    assert!(metric("loss").is_none());
}

#[test]
fn means_and_deviations() {
    assert_eq!(Summary::of(&[]), None);
    assert_eq!(std_dev(&[3.0]), None);
    let one = Summary::of(&[0.25]).expect("there is a value");
    assert_eq!((one.n, one.mean, one.std), (1, 0.25, None));
    // 2, 4, 4, 4, 5, 5, 7, 9: squares of the distances from 5 add up to 32, and 32 / 7 is unbiased.
    let values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
    let all = Summary::of(&values).expect("there are values");
    assert!(close(all.mean, 5.0));
    assert!(close(
        all.std.expect("there are eight"),
        (32.0_f64 / 7.0).sqrt()
    ));
}

proptest! {
    #[test]
    fn ratings_lie_between_0_and_1(acc: [u16; 2], asr: [u16; 2], ra: [u16; 2]) {
        let all = |i: usize| {
            let of = |hits: u16| ratio(hits.into(), u16::MAX.into());
            Scores { acc: of(acc[i]), asr: of(asr[i]), ra: of(ra[i]) }
        };
        let (before, after) = (all(0), all(1));
        for value in [der(&before, &after), rir(&before, &after)] {
            let value = value.expect("there are images");
            prop_assert!((0.0..=1.0).contains(&value));
        }
        // An unchanged model is in the middle, exactly.
        prop_assert_eq!(der(&before, &before), Some(0.5));
        prop_assert_eq!(rir(&before, &before), Some(0.5));
    }

    #[test]
    fn a_shift_moves_the_mean_and_not_the_deviation(
        values in prop::collection::vec(0.0..1.0_f64, 2..10),
        shift in -1.0..1.0_f64,
    ) {
        let shifted: Vec<f64> = values.iter().map(|value| value + shift).collect();
        let (a, b) = (Summary::of(&values).expect("some"), Summary::of(&shifted).expect("some"));
        prop_assert!(close(a.mean + shift, b.mean));
        prop_assert!((a.std.expect("two") - b.std.expect("two")).abs() < 1e-9);
    }
}
