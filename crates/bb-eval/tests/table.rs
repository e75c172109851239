//! The table: one model, six writers, inline snapshots.
use std::collections::BTreeSet;

use bb_core::cli::{Coded as _, exit};
use bb_core::data::NamedClass;
use bb_core::metrics::{Ratio, Scores};
use bb_eval::paper::{Facts, Paper, RepairFacts};
use bb_eval::table::{
    AttackRow, COLUMNS, Damage, DefenseColumn, Input, Layout, Observation, Role, Selection, Table,
    View, csv, html, json, latex, markdown, text,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn scores(acc: u64, asr: u64, ra: u64) -> Scores {
    let ratio = |hits, total| Ratio { hits, total };
    Scores {
        acc: ratio(acc, 10_000),
        asr: ratio(asr, 9_000),
        ra: ratio(ra, 9_000),
    }
}

fn attack(method: &str, width: usize) -> AttackRow {
    AttackRow {
        method: method.into(),
        label: method.into(),
        facts: Facts {
            dataset: "cifar10".into(),
            arch: "preactresnet18".into(),
            width,
            precision: "f32".into(),
            ratio: Some(0.1),
            label: Some("all2one".into()),
            epochs: Some(100),
            unlike: Some(Vec::new()),
            ..Facts::default()
        },
        target: None,
        arch: None,
    }
}

fn defense(method: &str, label: &str, role: Role) -> DefenseColumn {
    DefenseColumn {
        method: method.into(),
        label: label.into(),
        role,
        facts: Some(RepairFacts {
            precision: "f32".into(),
            clean_ratio: Some(0.05),
            unlike: Some(Vec::new()),
        }),
    }
}

/// Two attacks; TSBD with its oracle, and a second defense that misses one attack.
fn input(width: usize) -> Input {
    let before = [scores(9132, 8553, 400), scores(9347, 8993, 5)];
    let mut observations = Vec::new();
    let mut add = |attack: usize, defense: usize, after: Scores, seconds: Option<f64>| {
        let before = (defense > 0).then_some(before[attack]);
        observations.push(Observation {
            attack,
            defense,
            seed: 0,
            scores: after,
            before,
            seconds,
            peak_kib: None,
        });
    };
    add(0, 0, before[0], Some(754.2));
    add(1, 0, before[1], Some(801.0));
    add(0, 1, scores(9072, 118, 8101), Some(47.4));
    add(1, 1, scores(9161, 235, 7000), Some(48.0));
    add(0, 2, scores(9080, 90, 8111), None);
    add(1, 2, scores(9161, 200, 7000), None);
    add(0, 3, scores(8996, 133, 8200), Some(5.0));
    Input {
        title: "CIFAR-10, preactresnet18, seed 0".into(),
        dataset: "cifar10".into(),
        arch: "preactresnet18".into(),
        data: "0123456789abcdef".into(),
        attacks: vec![attack("badnets", width), attack("blended", width)],
        defenses: vec![
            DefenseColumn::undefended(),
            defense("tsbd", "TSBD", Role::Defended),
            defense("tsbd", "TSBD (oracle)", Role::Oracle),
            defense("ft", "FT", Role::Defended),
        ],
        seeds: vec![0],
        observations,
        paper: Some(Paper::tsbd_table1()),
        ..Input::default()
    }
}

#[test]
fn text_in_the_papers_setting() {
    let found = text::write(&Table::new(&input(64)), &Layout::Long.into());
    let expect = "\
CIFAR-10, preactresnet18, seed 0

                        ---------- ours (%) ----------  ------ paper ------  ------ delta ------
attack   defense        ACC ↑   ASR ↓    RA ↑   DER ↑     ACC    ASR    DER    ACC    ASR    DER         time
-------------------------------------------------------------------------------------------------------------
badnets  No defense     91.32   95.03    4.44           91.32  95.03          0.00   0.00         12 min 34 s
         TSBD           90.72*   1.31*  90.01   96.56*  90.72   1.31  96.53   0.00   0.00                47 s
         TSBD (oracle)  90.80    1.00   90.12   96.76   90.72   1.31  96.53  +0.08  -0.31                   -
         FT             89.96    1.48   91.11*  96.10   89.96   1.48  96.10   0.00   0.00   0.00          5 s
-------------------------------------------------------------------------------------------------------------
blended  No defense     93.47   99.92    0.06           93.47  99.92          0.00   0.00         13 min 21 s
         TSBD           91.61    2.61   77.78   97.73   91.61   2.61  97.73   0.00   0.00   0.00         48 s
         TSBD (oracle)  91.61    2.22   77.78   97.92   91.61   2.61  97.73   0.00  -0.39  +0.19            -
         FT                 -       -       -       -   92.78  96.11  51.56                                 -
-------------------------------------------------------------------------------------------------------------
Average  No defense     92.40   97.48    2.25           92.40  97.48          0.00   0.00         12 min 58 s
         TSBD           91.17    1.96   83.89   97.14   91.17   1.96  97.13   0.00   0.00  +0.01         48 s
         TSBD (oracle)  91.21    1.61   83.95   97.34   91.17   1.96  97.13  +0.04  -0.35  +0.21            -
         FT                 -       -       -       -   91.37  48.80  73.83                                 -

*: best of the defended rows of an attack
(oracle): chosen on the poisoned test set, which no defender has; never marked as best
time: the attack in the rows without defense, the repair in the others; 27 min 36 s together
paper: Lin et al., NeurIPS 2024, arXiv 2405.20291, Table 1; delta: ours - paper, in percentage points
without defense as published, within (in ACC, ASR): badnets (1.00, 6.00), blended (1.00, 3.00)
nothing is compared with the printed DER of badnets / TSBD: the printed ACC and ASR give 96.56
the paper's average is recomputed over the attacks shown here
missing: blended / FT: seed 0
";
    assert_eq!(found, expect, "\n{found}");
}

#[test]
fn text_in_another_setting() {
    let mut input = input(16);
    input.attacks.truncate(1);
    input.defenses.truncate(2);
    let found = text::write(&Table::new(&input), &Layout::Long.into());
    let expect = "\
CIFAR-10, preactresnet18, seed 0

                     -------- ours (%) --------  --------- paper ---------  ------ delta ------
attack   defense     ACC ↑  ASR ↓   RA ↑  DER ↑      ACC      ASR      DER     ACC     ASR  DER         time
------------------------------------------------------------------------------------------------------------
badnets  No defense  91.32  95.03   4.44         (91.32)  (95.03)           (0.00)  (0.00)       12 min 34 s
         TSBD        90.72   1.31  90.01  96.56  (90.72)   (1.31)  (96.53)  (0.00)  (0.00)              47 s

time: the attack in the rows without defense, the repair in the others; 13 min 22 s together
paper: Lin et al., NeurIPS 2024, arXiv 2405.20291, Table 1; delta: ours - paper, in percentage points
in parentheses: the paper's setting differs, so the delta is no verdict
badnets: width 16 instead of 64
nothing is compared with the printed DER of badnets / TSBD: the printed ACC and ASR give 96.56
";
    assert_eq!(found, expect, "\n{found}");
}

#[test]
fn text_without_a_paper_and_with_three_seeds() {
    let mut input = input(64);
    input.title = "synthetic, preactresnet18-w8".into();
    input.seeds = vec![0, 1, 2];
    input.defenses.truncate(2);
    for attack in &mut input.attacks {
        attack.facts.dataset = "synthetic".into();
    }
    let first = input.observations.clone();
    for seed in 1..3 {
        for o in first.iter().filter(|o| (o.attack, o.defense) != (1, 1)) {
            let mut o = o.clone();
            o.seed = seed;
            o.scores.acc.hits -= 30 * seed;
            o.seconds = None;
            input.observations.push(o);
        }
    }
    let found = text::write(&Table::new(&input), &Layout::Long.into());
    let expect = "\
synthetic, preactresnet18-w8

                          ---------------------- ours (%) ----------------------
attack   defense                 ACC ↑         ASR ↓          RA ↑         DER ↑         time
---------------------------------------------------------------------------------------------
badnets  No defense       91.02 ± 0.30  95.03 ± 0.00   4.44 ± 0.00                12 min 34 s
         TSBD             90.42 ± 0.30   1.31 ± 0.00  90.01 ± 0.00  96.41 ± 0.15         47 s
---------------------------------------------------------------------------------------------
blended  No defense       93.17 ± 0.30  99.92 ± 0.00   0.06 ± 0.00                13 min 21 s
         TSBD (n=1 of 3)         91.61          2.61         77.78         97.73         48 s
---------------------------------------------------------------------------------------------
Average  No defense       92.10 ± 0.30  97.48 ± 0.00   2.25 ± 0.00                12 min 58 s
         TSBD §                  91.02          1.96         83.89         97.07         48 s

§: an average over attacks with different seeds; never best
mean ± standard deviation (divisor n - 1) over n = 1 to 3 seeds
time: the attack in the rows without defense, the repair in the others; 27 min 31 s together
no published numbers for this dataset and network in TSBD Table 1
missing: blended / TSBD: seed 1, 2
";
    assert_eq!(found, expect, "\n{found}");
}

/// The numbers of a row that stand beside the paper's, as text.
fn theirs(text: &str, attack: &str, defense: &str) -> Vec<String> {
    let mut block = "";
    for line in text.lines().skip_while(|line| !line.starts_with("---")) {
        let mut words = line.split_whitespace().peekable();
        if !line.starts_with(' ') {
            block = words.next().unwrap_or_default();
        }
        if block == attack && words.peek() == Some(&defense) {
            return words.skip(5).take(6).map(str::to_owned).collect();
        }
    }
    panic!("no {attack} / {defense} in\n{text}");
}

#[test]
fn a_defense_with_other_settings_is_in_parentheses_in_its_rows_only() {
    let mut input = input(64);
    let tsbd = input.defenses[1].facts.as_mut().expect("a defense");
    tsbd.unlike = Some(vec!["finetune.epochs 5 instead of 21".into()]);
    tsbd.clean_ratio = Some(0.01);
    input.defenses[2].facts = input.defenses[1].facts.clone();
    let table = Table::new(&input);
    for block in &table.blocks {
        let same: Vec<Option<bool>> = block
            .rows
            .iter()
            .map(|row| row.paper.map(|p| p.same_setting))
            .collect();
        assert_eq!(
            same,
            [Some(true), Some(false), Some(false), Some(true)],
            "{}",
            block.attack
        );
    }
    let found = text::write(&table, &Layout::Long.into());
    assert_eq!(
        theirs(&found, "badnets", "TSBD"),
        ["(90.72)", "(1.31)", "(96.53)", "(0.00)", "(0.00)", "47"]
    );
    assert_eq!(
        theirs(&found, "badnets", "FT")[..3],
        ["89.96", "1.48", "96.10"]
    );
    let note = "\
in parentheses: the paper's setting differs, so the delta is no verdict
TSBD: share of clean images 0.01 instead of 0.05, finetune.epochs 5 instead of 21
without defense as published";
    assert!(found.contains(note), "{found}");
    let csv = csv::write(std::slice::from_ref(&table));
    let setting = |defense: &str| {
        let line = csv
            .lines()
            .find(|l| l.starts_with("mean,") && l.contains(&format!(",blended,{defense},")));
        line.expect("a line").contains(",same setting,")
    };
    assert!(setting("No defense") && setting("FT") && !setting("TSBD"));
}

#[test]
fn an_attack_with_other_settings_is_in_parentheses_with_all_its_defenses() {
    let mut input = input(64);
    input.attacks[1].facts.unlike = Some(vec!["built-in trigger instead of cat.png".into()]);
    let table = Table::new(&input);
    let same = |block: usize| -> Vec<bool> {
        let rows = table.blocks[block].rows.iter();
        rows.map(|row| row.paper.expect("printed").same_setting)
            .collect()
    };
    assert_eq!(same(0), [true; 4]);
    assert_eq!(same(1), [false; 4]);
    assert_eq!(same(2), [false; 4], "an average is of all of them");
    let notes = table.paper_notes.join("\n");
    assert!(
        notes.contains("\nblended: built-in trigger instead of cat.png\n"),
        "{notes}"
    );
    // Nothing is known of a method that is not registered.
    input.attacks[1].facts.unlike = None;
    let ft = input.defenses[3].facts.as_mut().expect("a defense");
    ft.unlike = None;
    let notes = Table::new(&input).paper_notes.join("\n");
    assert!(notes.contains("\nblended: settings unknown\n"), "{notes}");
    assert!(notes.contains("\nFT: settings unknown\n"), "{notes}");
    // A method that the paper lacks is not compared.
    input.defenses[3].method = "ulrl".into();
    let notes = Table::new(&input).paper_notes.join("\n");
    assert!(!notes.contains("FT"), "{notes}");
}

#[test]
fn a_damaged_cell_is_called_damaged_and_not_missing() {
    let mut input = input(64);
    input.seeds = vec![0, 1];
    input.damaged = vec![Damage {
        attack: 1,
        defense: 3,
        seed: 0,
        reason: "`m` has 3 bytes, expected 4".into(),
    }];
    let table = Table::new(&input);
    let expect = "damaged: blended / FT: seed 0: `m` has 3 bytes, expected 4";
    assert_eq!(table.left_out, [expect]);
    assert!(table.missing.contains(&"blended / FT: seed 1".to_owned()));
    for found in [
        text::write(&table, &Layout::Long.into()),
        text::write(&table, &Layout::Wide.into()),
        latex::write(&table, &Layout::Long.into()),
    ] {
        assert!(found.contains(expect), "{found}");
    }
}

#[test]
fn text_wide() {
    let found = text::write(&Table::new(&input(64)), &Layout::Wide.into());
    let expect = "\
CIFAR-10, preactresnet18, seed 0

         --- No defense ---  ----------- TSBD ------------  ----- TSBD (oracle) ------  ----------- FT ------------
attack   ACC ↑  ASR ↓  RA ↑  ACC ↑   ASR ↓    RA ↑  DER ↑   ACC ↑  ASR ↓   RA ↑  DER ↑  ACC ↑  ASR ↓   RA ↑   DER ↑
-------------------------------------------------------------------------------------------------------------------
badnets  91.32  95.03  4.44  90.72*   1.31*  90.01  96.56*  90.80   1.00  90.12  96.76  89.96   1.48  91.11*  96.10
blended  93.47  99.92  0.06  91.61    2.61   77.78  97.73   91.61   2.22  77.78  97.92      -      -      -       -
-------------------------------------------------------------------------------------------------------------------
Average  92.40  97.48  2.25  91.17    1.96   83.89  97.14   91.21   1.61  83.95  97.34      -      -      -       -

*: best of the defended rows of an attack
(oracle): chosen on the poisoned test set, which no defender has; never marked as best
time: the attack in the rows without defense, the repair in the others; 27 min 36 s together
missing: blended / FT: seed 0
";
    assert_eq!(found, expect, "\n{found}");
}

#[test]
fn markdown_long() {
    let found = markdown::write(&Table::new(&input(64)), &Layout::Long.into());
    let expect = "\
**CIFAR-10, preactresnet18, seed 0**

| attack | defense | ACC ↑ | ASR ↓ | RA ↑ | DER ↑ | paper ACC | paper ASR | paper DER | delta ACC | delta ASR | delta DER | time |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| badnets | No defense | 91.32 | 95.03 | 4.44 |  | 91.32 | 95.03 |  | 0.00 | 0.00 |  | 12 min 34 s |
| badnets | TSBD | **90.72** | **1.31** | 90.01 | **96.56** | 90.72 | 1.31 | 96.53 | 0.00 | 0.00 |  | 47 s |
| badnets | TSBD (oracle) | 90.80 | 1.00 | 90.12 | 96.76 | 90.72 | 1.31 | 96.53 | +0.08 | -0.31 |  | - |
| badnets | FT | 89.96 | 1.48 | **91.11** | 96.10 | 89.96 | 1.48 | 96.10 | 0.00 | 0.00 | 0.00 | 5 s |
| blended | No defense | 93.47 | 99.92 | 0.06 |  | 93.47 | 99.92 |  | 0.00 | 0.00 |  | 13 min 21 s |
| blended | TSBD | 91.61 | 2.61 | 77.78 | 97.73 | 91.61 | 2.61 | 97.73 | 0.00 | 0.00 | 0.00 | 48 s |
| blended | TSBD (oracle) | 91.61 | 2.22 | 77.78 | 97.92 | 91.61 | 2.61 | 97.73 | 0.00 | -0.39 | +0.19 | - |
| blended | FT | - | - | - | - | 92.78 | 96.11 | 51.56 |  |  |  | - |
| Average | No defense | 92.40 | 97.48 | 2.25 |  | 92.40 | 97.48 |  | 0.00 | 0.00 |  | 12 min 58 s |
| Average | TSBD | 91.17 | 1.96 | 83.89 | 97.14 | 91.17 | 1.96 | 97.13 | 0.00 | 0.00 | +0.01 | 48 s |
| Average | TSBD (oracle) | 91.21 | 1.61 | 83.95 | 97.34 | 91.17 | 1.96 | 97.13 | +0.04 | -0.35 | +0.21 | - |
| Average | FT | - | - | - | - | 91.37 | 48.80 | 73.83 |  |  |  | - |

- all numbers in percent
- bold: best of the defended rows of an attack
- (oracle): chosen on the poisoned test set, which no defender has; never marked as best
- time: the attack in the rows without defense, the repair in the others; 27 min 36 s together
- paper: Lin et al., NeurIPS 2024, arXiv 2405.20291, Table 1; delta: ours - paper, in percentage points
- without defense as published, within (in ACC, ASR): badnets (1.00, 6.00), blended (1.00, 3.00)
- nothing is compared with the printed DER of badnets / TSBD: the printed ACC and ASR give 96.56
- the paper's average is recomputed over the attacks shown here
- missing: blended / FT: seed 0
";
    assert_eq!(found, expect, "\n{found}");
}

#[test]
fn latex_long() {
    let found = latex::write(&Table::new(&input(16)), &Layout::Long.into());
    let expect = "\
% needs \\usepackage{booktabs}
% CIFAR-10, preactresnet18, seed 0
% bold: best of the defended rows of an attack
% (oracle): chosen on the poisoned test set, which no defender has; never marked as best
% time: the attack in the rows without defense, the repair in the others; 27 min 36 s together
% paper: Lin et al., NeurIPS 2024, arXiv 2405.20291, Table 1; delta: ours - paper, in percentage points
% in parentheses: the paper's setting differs, so the delta is no verdict
% badnets, blended: width 16 instead of 64
% nothing is compared with the printed DER of badnets / TSBD: the printed ACC and ASR give 96.56
% the paper's average is recomputed over the attacks shown here
% missing: blended / FT: seed 0
\\begin{tabular}{llrrrrrrrrrrr}
\\toprule
 &  & \\multicolumn{4}{c}{ours (\\%)} & \\multicolumn{3}{c}{paper} & \\multicolumn{3}{c}{delta} &  \\\\
\\cmidrule(lr){3-6} \\cmidrule(lr){7-9} \\cmidrule(lr){10-12}
attack & defense & ACC $\\uparrow$ & ASR $\\downarrow$ & RA $\\uparrow$ & DER $\\uparrow$ & ACC & ASR & DER & ACC & ASR & DER & time \\\\
\\midrule
badnets & No defense & 91.32 & 95.03 & 4.44 &  & (91.32) & (95.03) &  & (0.00) & (0.00) &  & 12 min 34 s \\\\
 & TSBD & \\textbf{90.72} & \\textbf{1.31} & 90.01 & \\textbf{96.56} & (90.72) & (1.31) & (96.53) & (0.00) & (0.00) &  & 47 s \\\\
 & TSBD (oracle) & 90.80 & 1.00 & 90.12 & 96.76 & (90.72) & (1.31) & (96.53) & (+0.08) & ($-$0.31) &  & - \\\\
 & FT & 89.96 & 1.48 & \\textbf{91.11} & 96.10 & (89.96) & (1.48) & (96.10) & (0.00) & (0.00) & (0.00) & 5 s \\\\
\\midrule
blended & No defense & 93.47 & 99.92 & 0.06 &  & (93.47) & (99.92) &  & (0.00) & (0.00) &  & 13 min 21 s \\\\
 & TSBD & 91.61 & 2.61 & 77.78 & 97.73 & (91.61) & (2.61) & (97.73) & (0.00) & (0.00) & (0.00) & 48 s \\\\
 & TSBD (oracle) & 91.61 & 2.22 & 77.78 & 97.92 & (91.61) & (2.61) & (97.73) & (0.00) & ($-$0.39) & (+0.19) & - \\\\
 & FT & - & - & - & - & (92.78) & (96.11) & (51.56) &  &  &  & - \\\\
\\midrule
Average & No defense & 92.40 & 97.48 & 2.25 &  & (92.40) & (97.48) &  & (0.00) & (0.00) &  & 12 min 58 s \\\\
 & TSBD & 91.17 & 1.96 & 83.89 & 97.14 & (91.17) & (1.96) & (97.13) & (0.00) & (0.00) & (+0.01) & 48 s \\\\
 & TSBD (oracle) & 91.21 & 1.61 & 83.95 & 97.34 & (91.17) & (1.96) & (97.13) & (+0.04) & ($-$0.35) & (+0.21) & - \\\\
 & FT & - & - & - & - & (91.37) & (48.80) & (73.83) &  &  &  & - \\\\
\\bottomrule
\\end{tabular}
";
    assert_eq!(found, expect, "\n{found}");
}

/// Six defenses, so that they do not fit beside each other, and the second best of each metric.
fn many() -> Input {
    let mut input = input(64);
    let scores = [(8900, 900), (9000, 500), (9050, 700)];
    for (i, (acc, asr)) in scores.into_iter().enumerate() {
        let label = ["FP", "NAD", "NC"][i];
        let column = input.defenses.len();
        input
            .defenses
            .push(defense(&label.to_lowercase(), label, Role::Defended));
        for attack in 0..2 {
            let before = input.observations[attack].scores;
            input.observations.push(Observation {
                attack,
                defense: column,
                seed: 0,
                scores: self::scores(acc, asr, 5000),
                before: Some(before),
                seconds: None,
                peak_kib: Some(1024 * (1 + i as u64)),
            });
        }
    }
    input
}

#[test]
fn text_as_papers_print_it() {
    let found = text::write(&Table::new(&many()), &Layout::Paper.into());
    let expect = "\
CIFAR-10, preactresnet18, seed 0

          No defense   -------- TSBD --------  ------- FT --------  ------- FP --------  ------- NAD -------
attack   ACC ↑  ASR ↓  ACC ↑   ASR ↓   DER ↑   ACC ↑  ASR ↓  DER ↑  ACC ↑  ASR ↓  DER ↑  ACC ↑  ASR ↓  DER ↑
------------------------------------------------------------------------------------------------------------
badnets  91.32  95.03  90.72*   1.31*  96.56*  89.96   1.48  96.10  89.00  10.00  91.36  90.00   5.56  94.08
blended  93.47  99.92  91.61*   2.61*  97.73*      -      -      -  89.00  10.00  92.73  90.00   5.56  95.45
------------------------------------------------------------------------------------------------------------
Average  92.40  97.48  91.17*   1.96*  97.14*      -      -      -  89.00  10.00  92.04  90.00   5.56  94.76

         ------- NC --------
attack   ACC ↑  ASR ↓  DER ↑
----------------------------
badnets  90.50   7.78  93.22
blended  90.50   7.78  94.59
----------------------------
Average  90.50   7.78  93.90

         -- TSBD (oracle) --
attack   ACC ↑  ASR ↓  DER ↑
----------------------------
badnets  90.80   1.00  96.76
blended  91.61   2.22  97.92
----------------------------
Average  91.21   1.61  97.34

*: best of the defended rows of an attack
(oracle): chosen on the poisoned test set, which no defender has; never marked as best
time: the attack in the rows without defense, the repair in the others; 27 min 36 s together
missing: blended / FT: seed 0
";
    assert_eq!(found, expect, "\n{found}");
}

#[test]
fn latex_as_papers_print_it() {
    let view = View {
        caption: Some("Ours, 100 % of it".into()),
        label: Some("tab:ours".into()),
        metrics: vec![0, 1],
        ..Layout::Paper.into()
    };
    let found = latex::write(&Table::new(&many()), &view);
    let expect = "\
% needs \\usepackage{booktabs}
% CIFAR-10, preactresnet18, seed 0
% bold: best of the defended rows of an attack
% underlined: second best
% (oracle): chosen on the poisoned test set, which no defender has; never marked as best
% time: the attack in the rows without defense, the repair in the others; 27 min 36 s together
% missing: blended / FT: seed 0
\\begin{table*}
\\centering
\\caption{Ours, 100 \\% of it}
\\label{tab:ours}
\\begin{tabular}{lrrrrrrrrrr}
\\toprule
 & \\multicolumn{2}{c}{No defense} & \\multicolumn{2}{c}{TSBD} & \\multicolumn{2}{c}{FT} & \\multicolumn{2}{c}{FP} & \\multicolumn{2}{c}{NAD} \\\\
\\cmidrule(lr){2-3} \\cmidrule(lr){4-5} \\cmidrule(lr){6-7} \\cmidrule(lr){8-9} \\cmidrule(lr){10-11}
attack & ACC $\\uparrow$ & ASR $\\downarrow$ & ACC $\\uparrow$ & ASR $\\downarrow$ & ACC $\\uparrow$ & ASR $\\downarrow$ & ACC $\\uparrow$ & ASR $\\downarrow$ & ACC $\\uparrow$ & ASR $\\downarrow$ \\\\
\\midrule
badnets & 91.32 & 95.03 & \\textbf{90.72} & \\textbf{1.31} & 89.96 & \\underline{1.48} & 89.00 & 10.00 & 90.00 & 5.56 \\\\
blended & 93.47 & 99.92 & \\textbf{91.61} & \\textbf{2.61} & - & - & 89.00 & 10.00 & 90.00 & \\underline{5.56} \\\\
\\midrule
Average & 92.40 & 97.48 & \\textbf{91.17} & \\textbf{1.96} & - & - & 89.00 & 10.00 & 90.00 & \\underline{5.56} \\\\
\\midrule[\\heavyrulewidth]
 & \\multicolumn{2}{c}{NC} \\\\
\\cmidrule(lr){2-3}
attack & ACC $\\uparrow$ & ASR $\\downarrow$ \\\\
\\midrule
badnets & \\underline{90.50} & 7.78 \\\\
blended & \\underline{90.50} & 7.78 \\\\
\\midrule
Average & \\underline{90.50} & 7.78 \\\\
\\midrule[\\heavyrulewidth]
 & \\multicolumn{2}{c}{TSBD (oracle)} \\\\
\\cmidrule(lr){2-3}
attack & ACC $\\uparrow$ & ASR $\\downarrow$ \\\\
\\midrule
badnets & 90.80 & 1.00 \\\\
blended & 91.61 & 2.22 \\\\
\\midrule
Average & 91.21 & 1.61 \\\\
\\bottomrule
\\end{tabular}
\\end{table*}
";
    assert_eq!(found, expect, "\n{found}");
}

#[test]
fn a_page_of_html() {
    let mut input = input(64);
    input.attacks[0].label = "<b>&\"x\"".into();
    let found = html::write(&[Table::new(&input)], &View::default());
    for expect in [
        "<title>CIFAR-10, preactresnet18, seed 0</title>",
        "<th></th><th></th><th class=\"g\" colspan=\"4\">ours (%)</th>",
        "<tr><td>&lt;b&gt;&amp;&quot;x&quot;</td><td>No defense</td><td class=\"n\">91.32</td>",
        // The attack is named once.
        "<tr><td></td><td>TSBD</td><td class=\"n\"><b>90.72</b></td>",
        "<li>missing: blended / FT: seed 0</li>",
    ] {
        assert!(found.contains(expect), "{expect}\n{found}");
    }
    assert!(!found.contains("<script"), "{found}");
    // Each element is closed.
    for tag in [
        "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "body", "html",
    ] {
        let count = |mark: String| found.matches(&mark).count();
        let opened = count(format!("<{tag}>")) + count(format!("<{tag} "));
        assert_eq!(opened, count(format!("</{tag}>")), "{tag}");
    }
}

#[test]
fn json_has_what_the_table_has() {
    let mut input = many();
    input.classes = Some(10);
    let table = Table::new(&input);
    let found: Value = serde_json::from_str(&json::write(&[table])).expect("JSON");
    assert_eq!(found["schema"], 1);
    let table = &found["tables"][0];
    assert_eq!(table["paper"], "TSBD Table 1");
    assert_eq!(table["missing"], json!(["blended / FT: seed 0"]));
    let row = &table["attacks"][0]["rows"][1];
    assert_eq!(row["defense"], "TSBD");
    assert_eq!(row["role"], "defended");
    assert_eq!(row["acc"]["mean"], 90.72);
    assert_eq!(row["acc"]["best"], true);
    assert_eq!(row["der"]["paper_is_broken"], true);
    assert_eq!(row["der"]["delta"], Value::Null);
    assert_eq!(row["same_setting"], true);
    assert_eq!(
        row["cells"][0]["asr"],
        json!({ "hits": 118, "total": 9000 })
    );
    assert_eq!(row["seconds"], 47.4);
    let undefended = &table["attacks"][0]["rows"][0];
    assert_eq!(undefended["verdict"], "agrees");
    assert_eq!(undefended["der"], Value::Null);
    assert_eq!(table["attacks"][0]["rows"][4]["peak_kib"], 1024);
    assert_eq!(table["attacks"][2]["average"], true);
    assert_eq!(table["attacks"][2]["rows"][5]["peak_kib"], 2048);
    let absent = &table["attacks"][1]["rows"][3];
    assert_eq!(
        (&absent["acc"], &absent["expected_seeds"]),
        (&Value::Null, &Value::Null)
    );
}

#[test]
fn averages_are_of_what_is_selected() {
    let mut input = many();
    let chosen = Selection {
        attacks: vec!["Blended".into()],
        defenses: vec!["nad".into(), "TSBD (oracle)".into()],
    };
    input.select(&chosen).expect("both are there");
    let table = Table::new(&input);
    let names = |table: &Table| -> Vec<String> {
        let rows = table.blocks[0].rows.iter();
        rows.map(|row| row.defense.clone()).collect()
    };
    assert_eq!(names(&table), ["No defense", "TSBD (oracle)", "NAD"]);
    let blocks: Vec<&str> = table.blocks.iter().map(|b| b.attack.as_str()).collect();
    assert_eq!(blocks, ["blended"], "of one attack there is no average");
    assert_eq!(table.blocks[0].rows[2].cells[0].scores.acc.hits, 9000);
    assert!(table.missing.is_empty(), "{:?}", table.missing);

    let mut by_method = many();
    let tsbd = Selection {
        defenses: vec!["tsbd".into()],
        ..Selection::default()
    };
    by_method.select(&tsbd).expect("it is there");
    let table = Table::new(&by_method);
    assert_eq!(names(&table), ["No defense", "TSBD", "TSBD (oracle)"]);
    assert_eq!(table.blocks.len(), 3);

    for (attacks, defenses, expect) in [
        (
            vec!["wanet"],
            vec![],
            "the table has no attack `wanet`, expected one of `badnets`, `blended`",
        ),
        (
            vec![],
            vec!["clp"],
            "the table has no defense `clp`, expected one of `TSBD`, `TSBD (oracle)`, `FT`, `FP`, `NAD`, `NC`",
        ),
    ] {
        let own = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        let wrong = Selection {
            attacks: own(attacks),
            defenses: own(defenses),
        };
        let error = many().select(&wrong).expect_err("not there");
        assert_eq!(error.to_string(), expect);
        assert_eq!(error.exit_code(), exit::USAGE);
    }
}

#[test]
fn latex_wide() {
    let found = latex::write(&Table::new(&input(64)), &Layout::Wide.into());
    let expect = "\
% needs \\usepackage{booktabs}
% CIFAR-10, preactresnet18, seed 0
% bold: best of the defended rows of an attack
% (oracle): chosen on the poisoned test set, which no defender has; never marked as best
% time: the attack in the rows without defense, the repair in the others; 27 min 36 s together
% missing: blended / FT: seed 0
\\begin{tabular}{lrrrrrrrrrrrrrrr}
\\toprule
 & \\multicolumn{3}{c}{No defense} & \\multicolumn{4}{c}{TSBD} & \\multicolumn{4}{c}{TSBD (oracle)} & \\multicolumn{4}{c}{FT} \\\\
\\cmidrule(lr){2-4} \\cmidrule(lr){5-8} \\cmidrule(lr){9-12} \\cmidrule(lr){13-16}
attack & ACC $\\uparrow$ & ASR $\\downarrow$ & RA $\\uparrow$ & ACC $\\uparrow$ & ASR $\\downarrow$ & RA $\\uparrow$ & DER $\\uparrow$ & ACC $\\uparrow$ & ASR $\\downarrow$ & RA $\\uparrow$ & DER $\\uparrow$ & ACC $\\uparrow$ & ASR $\\downarrow$ & RA $\\uparrow$ & DER $\\uparrow$ \\\\
\\midrule
badnets & 91.32 & 95.03 & 4.44 & \\textbf{90.72} & \\textbf{1.31} & 90.01 & \\textbf{96.56} & 90.80 & 1.00 & 90.12 & 96.76 & 89.96 & 1.48 & \\textbf{91.11} & 96.10 \\\\
blended & 93.47 & 99.92 & 0.06 & 91.61 & 2.61 & 77.78 & 97.73 & 91.61 & 2.22 & 77.78 & 97.92 & - & - & - & - \\\\
\\midrule
Average & 92.40 & 97.48 & 2.25 & 91.17 & 1.96 & 83.89 & 97.14 & 91.21 & 1.61 & 83.95 & 97.34 & - & - & - & - \\\\
\\bottomrule
\\end{tabular}
";
    assert_eq!(found, expect, "\n{found}");
}

#[test]
fn csv_long() {
    let found = csv::write(&[Table::new(&input(64))]);
    let expect = "\
kind,dataset,arch,data,attack,defense,role,seed,n,acc,acc_std,acc_hits,acc_total,asr,asr_std,asr_hits,asr_total,ra,ra_std,ra_hits,ra_total,der,der_std,paper,paper_acc,paper_asr,paper_ra,paper_der,delta_acc,delta_asr,delta_ra,delta_der,seconds,seeds,flags,target,target_name,verdict,peak_kib
cell,cifar10,preactresnet18,0123456789ab,badnets,No defense,undefended,0,1,91.32,,9132,10000,95.033333,,8553,9000,4.444444,,400,9000,,,,,,,,,,,,754.2,0,,,,,
mean,cifar10,preactresnet18,0123456789ab,badnets,No defense,undefended,,1,91.32,,,,95.033333,,,,4.444444,,,,,,same setting,91.32,95.03,,,0,0.003333,,,754.2,0,,,,agrees,
cell,cifar10,preactresnet18,0123456789ab,badnets,TSBD,defended,0,1,90.72,,9072,10000,1.311111,,118,9000,90.011111,,8101,9000,96.561111,,,,,,,,,,,47.4,0,,,,,
mean,cifar10,preactresnet18,0123456789ab,badnets,TSBD,defended,,1,90.72,,,,1.311111,,,,90.011111,,,,96.561111,,same setting,90.72,1.31,,96.53,0,0.001111,,,47.4,0,,,,,
cell,cifar10,preactresnet18,0123456789ab,badnets,TSBD (oracle),oracle,0,1,90.8,,9080,10000,1,,90,9000,90.122222,,8111,9000,96.756667,,,,,,,,,,,,0,,,,,
mean,cifar10,preactresnet18,0123456789ab,badnets,TSBD (oracle),oracle,,1,90.8,,,,1,,,,90.122222,,,,96.756667,,same setting,90.72,1.31,,96.53,0.08,-0.31,,,,0,,,,,
cell,cifar10,preactresnet18,0123456789ab,badnets,FT,defended,0,1,89.96,,8996,10000,1.477778,,133,9000,91.111111,,8200,9000,96.097778,,,,,,,,,,,5,0,,,,,
mean,cifar10,preactresnet18,0123456789ab,badnets,FT,defended,,1,89.96,,,,1.477778,,,,91.111111,,,,96.097778,,same setting,89.96,1.48,,96.1,0,-0.002222,,-0.002222,5,0,,,,,
cell,cifar10,preactresnet18,0123456789ab,blended,No defense,undefended,0,1,93.47,,9347,10000,99.922222,,8993,9000,0.055556,,5,9000,,,,,,,,,,,,801,0,,,,,
mean,cifar10,preactresnet18,0123456789ab,blended,No defense,undefended,,1,93.47,,,,99.922222,,,,0.055556,,,,,,same setting,93.47,99.92,,,0,0.002222,,,801,0,,,,agrees,
cell,cifar10,preactresnet18,0123456789ab,blended,TSBD,defended,0,1,91.61,,9161,10000,2.611111,,235,9000,77.777778,,7000,9000,97.725556,,,,,,,,,,,48,0,,,,,
mean,cifar10,preactresnet18,0123456789ab,blended,TSBD,defended,,1,91.61,,,,2.611111,,,,77.777778,,,,97.725556,,same setting,91.61,2.61,,97.73,0,0.001111,,-0.004444,48,0,,,,,
cell,cifar10,preactresnet18,0123456789ab,blended,TSBD (oracle),oracle,0,1,91.61,,9161,10000,2.222222,,200,9000,77.777778,,7000,9000,97.92,,,,,,,,,,,,0,,,,,
mean,cifar10,preactresnet18,0123456789ab,blended,TSBD (oracle),oracle,,1,91.61,,,,2.222222,,,,77.777778,,,,97.92,,same setting,91.61,2.61,,97.73,0,-0.387778,,0.19,,0,,,,,
mean,cifar10,preactresnet18,0123456789ab,blended,FT,defended,,0,,,,,,,,,,,,,,,same setting,92.78,96.11,,51.56,,,,,,,,,,,
average,cifar10,preactresnet18,0123456789ab,Average,No defense,undefended,,1,92.395,,,,97.477778,,,,2.25,,,,,,same setting,92.395,97.475,,,0,0.002778,,,777.6,0,,,,,
average,cifar10,preactresnet18,0123456789ab,Average,TSBD,defended,,1,91.165,,,,1.961111,,,,83.894444,,,,97.143333,,same setting,91.165,1.96,,97.13,0,0.001111,,0.013333,47.7,0,,,,,
average,cifar10,preactresnet18,0123456789ab,Average,TSBD (oracle),oracle,,1,91.205,,,,1.611111,,,,83.95,,,,97.338333,,same setting,91.165,1.96,,97.13,0.04,-0.348889,,0.208333,,0,,,,,
average,cifar10,preactresnet18,0123456789ab,Average,FT,defended,,0,,,,,,,,,,,,,,,same setting,91.37,48.795,,73.83,,,,,,,,,,,
";
    assert_eq!(found, expect, "\n{found}");
}

#[test]
fn the_attacked_classes_are_named() {
    let named = |class: u32, name: &str| {
        let name = name.to_owned();
        Some(NamedClass { class, name })
    };
    let mut input = input(64);
    let note = |input: &Input| {
        let text = text::write(&Table::new(input), &Layout::Long.into());
        let line = text.lines().find(|line| line.contains("target class"));
        line.map(str::to_owned)
    };
    assert_eq!(note(&input), None);
    input.attacks[0].target = named(2, "10");
    let one = note(&input).expect("a note");
    assert!(one.ends_with("target classes: badnets 2 (`10`)"), "{one}");
    input.attacks[1].target = named(2, "10");
    let all = note(&input).expect("a note");
    assert!(all.ends_with("target class: 2 (`10`)"), "{all}");
    let csv = csv::write(&[Table::new(&input)]);
    let with = csv.lines().filter(|line| line.contains(",2,10,")).count();
    let without = csv.lines().filter(|line| line.ends_with(",,,")).count();
    // Seven runs and eight means of the two attacks, and four averages.
    assert_eq!((with, without), (15, 4), "{csv}");
}

#[test]
fn labels_are_escaped() {
    let mut input = input(64);
    input.attacks.truncate(1);
    input.defenses = vec![defense("a", "50% a_b|{c}\\, \"d\" & #", Role::Defended)];
    let table = Table::new(&input);
    let cases = [
        (
            markdown::write(&table, &Layout::Long.into()),
            "| 50% a\\_b\\|{c}\\\\, \"d\" & \\# |",
        ),
        (
            latex::write(&table, &Layout::Long.into()),
            "50\\% a\\_b\\textbar{}\\{c\\}\\textbackslash{}, \"d\" \\& \\# &",
        ),
        (
            csv::write(std::slice::from_ref(&table)),
            ",\"50% a_b|{c}\\, \"\"d\"\" & #\",",
        ),
    ];
    for (found, expect) in cases {
        assert!(found.contains(expect), "{expect}\n{found}");
    }
}

#[test]
fn no_label_is_a_formula_or_tells_a_terminal_what_to_do() {
    for (label, expect) in [
        ("=cmd()", "'=cmd()"),
        ("+1+1", "'+1+1"),
        ("-x", "'-x"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\tx", "' x"),
        ("a\u{1b}[2Jy\nz\r", "a [2Jy z "),
    ] {
        let mut input = input(64);
        input.attacks.truncate(1);
        input.defenses = vec![defense("a", label, Role::Defended)];
        let table = Table::new(&input);
        let long = csv::write(std::slice::from_ref(&table));
        assert!(long.contains(&format!(",{expect},")), "{label:?}\n{long}");
        for text in [
            long,
            text::write(&table, &Layout::Long.into()),
            markdown::write(&table, &Layout::Long.into()),
            latex::write(&table, &Layout::Wide.into()),
        ] {
            let controls = text.chars().filter(|&c| c.is_control() && c != '\n');
            assert_eq!(controls.count(), 0, "{text:?}");
            assert!(!text.contains("y\nz"), "{text}");
        }
    }
}

#[test]
fn a_clean_model_has_a_row_without_asr_and_no_part_in_the_average() {
    let mut input = input(64);
    let plain = Table::new(&input);
    input.attacks.insert(0, attack("clean", 64));
    for o in &mut input.observations {
        o.attack += 1;
    }
    let clean = |acc| Scores {
        acc: Ratio {
            hits: acc,
            total: 10_000,
        },
        ..Scores::default()
    };
    for (defense, acc) in [(0, 9400), (1, 9300)] {
        input.observations.push(Observation {
            attack: 0,
            defense,
            seed: 0,
            scores: clean(acc),
            before: (defense > 0).then(|| clean(9400)),
            seconds: None,
            peak_kib: None,
        });
    }
    let table = Table::new(&input);
    let [clean, .., average] = &table.blocks[..] else {
        panic!("a block per attack and the average")
    };
    assert!(clean.clean && !average.clean);
    let row = &clean.rows[0];
    assert_eq!(row.values[0].map(|s| s.n), Some(1));
    assert_eq!(row.values[1..], [None; 3]);
    assert_eq!((row.cells[0].ratio(1), row.cells[0].ratio(2)), (None, None));
    // The average is the one without the clean model, and the paper's as well.
    let before = plain.blocks.last().expect("an average");
    for (row, before) in average.rows.iter().zip(&before.rows) {
        assert_eq!((row.values, row.paper), (before.values, before.paper));
    }
    assert_eq!(table.paper_notes, plain.paper_notes);
    let note = "clean: no image is poisoned, so there is no ASR, RA or DER; not in the average";
    assert!(table.notes.iter().any(|n| n == note), "{:?}", table.notes);

    let csv = csv::write(std::slice::from_ref(&table));
    let lines = |kind: &str| -> Vec<Vec<String>> {
        let wanted = format!("{kind},cifar10,preactresnet18,0123456789ab,clean,No defense,");
        let lines = csv.lines().filter(|line| line.starts_with(&wanted));
        lines
            .map(|line| line.split(',').map(str::to_owned).collect())
            .collect()
    };
    assert_eq!(lines("cell")[0][9..13], ["94", "", "9400", "10000"]);
    for kind in ["cell", "mean"] {
        let empty = &lines(kind)[0][13..21];
        assert!(empty.iter().all(String::is_empty), "{kind}: {empty:?}");
    }

    // With one attack beside it there is nothing to average.
    input.attacks.truncate(2);
    input.observations.retain(|o| o.attack < 2);
    let table = Table::new(&input);
    assert!(table.blocks.iter().all(|block| !block.average));
}

/// Three attacks that worked, one that did not, and one whose model learned nothing; TSBD, its oracle, and a defense that
/// destroys the second model.
fn broken() -> Input {
    let mut input = input(16);
    input.paper = None;
    input.classes = Some(10);
    input.asr_floor = 0.5;
    let column = defense("ulrl", "ULRL", Role::Defended);
    input.defenses.truncate(2);
    input.defenses.push(column);
    input.observations.clear();
    let attacks = [
        ("badnets", scores(9132, 8553, 400)),
        ("blended", scores(9347, 8993, 5)),
        ("wanet", scores(9300, 481, 8300)),
        ("lf", scores(1000, 9000, 0)),
    ];
    input.attacks = attacks.iter().map(|(name, _)| attack(name, 16)).collect();
    for (attack, (_, before)) in attacks.iter().enumerate() {
        let destroyed = attack == 1;
        let repaired = |acc, asr| scores(acc, asr, 7000);
        for (defense, scores, before) in [
            (0, *before, None),
            (1, repaired(9000, 300), Some(*before)),
            (
                2,
                repaired(if destroyed { 1100 } else { 9100 }, 0),
                Some(*before),
            ),
        ] {
            input.observations.push(Observation {
                attack,
                defense,
                seed: 0,
                scores,
                before,
                seconds: None,
                peak_kib: None,
            });
        }
    }
    input
}

#[test]
fn what_did_not_work_is_marked_and_never_best() {
    let table = Table::new(&broken());
    let found = text::write(&table, &Layout::Long.into());
    let expect = "\
CIFAR-10, preactresnet18, seed 0

                       ----------- ours (%) -----------
attack   defense       ACC ↑    ASR ↓    RA ↑    DER ↑
-------------------------------------------------------
badnets  No defense    91.32    95.03    4.44
         TSBD          90.00     3.33   77.78*   95.19
         ULRL          91.00*    0.00*  77.78*   97.36*
-------------------------------------------------------
blended  No defense    93.47    99.92    0.06
         TSBD          90.00*    3.33*  77.78*   96.56*
         ULRL ‡        11.00     0.00   77.78    58.73
-------------------------------------------------------
wanet †  No defense    93.00     5.34   92.22
         TSBD          90.00     3.33   77.78    49.51
         ULRL          91.00     0.00   77.78    51.67
-------------------------------------------------------
lf       No defense ‡  10.00   100.00    0.00
         TSBD          90.00     3.33   77.78    98.33
         ULRL          91.00     0.00   77.78   100.00
-------------------------------------------------------
Average  No defense    92.40    97.48    2.25
         TSBD          90.00*    3.33*  77.78*   95.87*
         ULRL ‡        51.00     0.00   77.78    78.04

*: best of the defended rows of an attack
†: the backdoor was not planted (ASR without defense under 50.00 %); never best, not in the average
‡: at chance (ACC hardly above guessing among 10 classes); never best; not in the average if it is the attacked model, otherwise the average has the sign, too
";
    assert_eq!(found, expect, "\n{found}");
    let wide = text::write(&table, &Layout::Wide.into());
    assert!(
        wide.contains("\nwanet †  ") && wide.contains("\nAverage  "),
        "{wide}"
    );
    assert!(
        wide.contains(" 11.00 ‡ ") && wide.contains(" 10.00 ‡ "),
        "{wide}"
    );
    let markdown = markdown::write(&table, &Layout::Long.into());
    for expect in [
        "| wanet † | TSBD | 90.00 | 3.33 | 77.78 | 49.51 |\n",
        "| blended | ULRL ‡ | 11.00 | 0.00 | 77.78 | 58.73 |\n",
        "| Average | ULRL ‡ | 51.00 |",
        "\n- †: the backdoor was not planted (ASR without defense under 50.00 %); never best",
        "\n- ‡: at chance (ACC hardly",
    ] {
        assert!(markdown.contains(expect), "{expect}\n{markdown}");
    }
    let latex = latex::write(&table, &Layout::Long.into());
    for expect in [
        "\nwanet $\\dagger$ & No defense & 93.00 &",
        "\n & ULRL $\\ddagger$ & 11.00 & 0.00 & 77.78 & 58.73 \\\\\n",
        "\n% †: the backdoor was not planted (",
        "\n% ‡: at chance (",
    ] {
        assert!(latex.contains(expect), "{expect}\n{latex}");
    }
    let csv = csv::write(std::slice::from_ref(&table));
    let flags = |kind: &str, attack: &str, defense: &str| -> String {
        let wanted = format!("{kind},cifar10,preactresnet18,0123456789ab,{attack},{defense},");
        let line = csv.lines().find(|line| line.starts_with(&wanted));
        let line = line.unwrap_or_else(|| panic!("no {wanted} in\n{csv}"));
        let header = fields(csv.lines().next().expect("a header"));
        let at = header.iter().position(|name| *name == "flags");
        fields(line)[at.expect("a column of flags")].to_owned()
    };
    for kind in ["cell", "mean"] {
        assert_eq!(flags(kind, "badnets", "TSBD"), "");
        assert_eq!(flags(kind, "wanet", "TSBD"), "not_planted");
        assert_eq!(flags(kind, "blended", "ULRL"), "at_chance");
        assert_eq!(flags(kind, "lf", "No defense"), "at_chance");
        assert_eq!(flags(kind, "lf", "ULRL"), "");
    }
    assert_eq!(flags("average", "Average", "ULRL"), "at_chance");
    assert_eq!(flags("average", "Average", "TSBD"), "");
}

#[test]
fn the_floor_is_the_grids_and_a_mean_over_seeds_is_judged_as_such() {
    let mut input = broken();
    let marked = |input: &Input| -> Vec<bool> {
        let table = Table::new(input);
        table.blocks.iter().map(|b| b.marks.not_planted).collect()
    };
    assert_eq!(marked(&input), [false, false, true, false, false]);
    input.asr_floor = 0.99;
    assert_eq!(marked(&input)[..4], [true, false, true, false]);
    // An attack at the floor is not below it.
    input.asr_floor = input.observations[0].scores.asr.value().expect("images");
    assert_eq!(marked(&input)[..4], [false, false, true, false]);
    input.asr_floor = 0.0;
    assert_eq!(marked(&input), [false; 5]);

    // Of two runs one worked: the mean is above the floor, and a note names the other.
    input.asr_floor = 0.5;
    let mut second = input.observations[0].clone();
    second.seed = 1;
    second.scores = scores(9100, 900, 8000);
    input.observations.push(second);
    input.seeds = vec![0, 1];
    let table = Table::new(&input);
    assert!(!table.blocks[0].marks.not_planted);
    let note = "badnets / No defense: not planted with seed 1";
    assert!(table.notes.iter().any(|n| n == note), "{:?}", table.notes);
    // Without the cell of the attack, what its defenses measured before says the same.
    let mut without = broken();
    without.observations.retain(|o| o.defense > 0);
    assert_eq!(marked(&without)[..4], [false, false, true, false]);
}

#[test]
fn chance_depends_on_classes_and_on_how_many_images_were_measured() {
    let at_chance = |classes, hits, total| {
        let mut input = broken();
        input.classes = classes;
        input.attacks.truncate(1);
        input.observations.truncate(1);
        input.observations[0].scores.acc = Ratio { hits, total };
        Table::new(&input).blocks[0].rows[0].marks.at_chance
    };
    for (classes, hits, total, expect) in [
        (Some(10), 1_000, 10_000, true),
        (Some(10), 1_400, 10_000, true),
        (Some(10), 1_500, 10_000, false),
        // 10 of 50 images are right by chance more often than once in a hundred times, 11 are not.
        (Some(10), 9, 50, true),
        (Some(10), 11, 50, false),
        // The spread of a guess is sqrt(0.25 / 100) here, so that the limit is 61.6 of 100.
        (Some(2), 61, 100, true),
        (Some(2), 62, 100, false),
        (Some(2), 5_200, 10_000, true),
        (Some(2), 5_400, 10_000, false),
        // The largest class of GTSRB's test set.
        (Some(43), 750, 12_630, true),
        (Some(43), 1_000, 12_630, false),
        (Some(200), 50, 10_000, true),
        (Some(10), 0, 10_000, true),
        // Nothing is known, nothing was measured, nothing to tell apart.
        (None, 0, 10_000, false),
        (Some(10), 0, 0, false),
        (Some(1), 10, 10, false),
        (Some(0), 10, 10, false),
    ] {
        assert_eq!(
            at_chance(classes, hits, total),
            expect,
            "{classes:?} {hits}/{total}"
        );
    }
}

#[test]
fn a_failed_cell_is_called_failed_with_its_reason() {
    let mut input = input(64);
    input.failed = vec![Damage {
        attack: 1,
        defense: 3,
        seed: 0,
        reason: "finetune diverged: the loss is NaN".into(),
    }];
    let table = Table::new(&input);
    let expect = "failed: blended / FT: seed 0: finetune diverged: the loss is NaN";
    assert_eq!(table.left_out, [expect]);
    assert!(table.missing.is_empty(), "{:?}", table.missing);
    for found in [
        text::write(&table, &Layout::Long.into()),
        markdown::write(&table, &Layout::Long.into()),
        latex::write(&table, &Layout::Wide.into()),
    ] {
        assert!(found.contains(expect), "{found}");
    }
}

#[test]
fn an_empty_table_is_no_failure() {
    let table = Table::new(&Input::default());
    for layout in [Layout::Long, Layout::Wide, Layout::Paper] {
        text::write(&table, &layout.into());
        markdown::write(&table, &layout.into());
        latex::write(&table, &layout.into());
    }
    assert_eq!(csv::write(std::slice::from_ref(&table)).lines().count(), 1);
}

/// The fields of one CSV line; the labels of these tests need no quotes.
fn fields(line: &str) -> Vec<&str> {
    line.split(',').collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A row says that seeds are absent if and only if some are, and an average is only called one over the same seeds
    /// where it is.
    #[test]
    fn the_seeds_shown_are_those_that_were_measured(
        seeds in prop::collection::btree_set(0_u64..6, 1..4),
        cells in prop::collection::vec((0_usize..3, 0_usize..3, 0_u64..6), 0..30),
    ) {
        let cells: BTreeSet<_> = cells.into_iter().filter(|c| seeds.contains(&c.2)).collect();
        let mut input = broken();
        input.attacks.truncate(3);
        input.asr_floor = 0.0;
        input.seeds = seeds.iter().copied().collect();
        input.observations = cells
            .iter()
            .map(|&(attack, defense, seed)| Observation {
                attack,
                defense,
                seed,
                scores: scores(9_000, 8_000, 100),
                before: (defense > 0).then(|| scores(9_000, 8_000, 100)),
                seconds: None,
                peak_kib: None,
            })
            .collect();
        let table = Table::new(&input);
        let csv = csv::write(std::slice::from_ref(&table));
        let header = fields(csv.lines().next().expect("a header"));
        let at = |name: &str| header.iter().position(|h| *h == name).expect("a column");
        let text = text::write(&table, &Layout::Long.into());
        let mut text = text.lines().skip_while(|l| !l.starts_with("---")).filter(|l| !l.starts_with("---"));
        let list = |seeds: &[u64]| seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        for (attack, block) in table.blocks.iter().enumerate() {
            for (defense, row) in block.rows.iter().enumerate() {
                let on_disk = |attack| -> Vec<u64> {
                    let here = cells.iter().filter(|c| (c.0, c.1) == (attack, defense));
                    here.map(|c| c.2).collect()
                };
                let shown = text.next().expect("a line per row");
                let kind = if block.average { "average" } else { "mean" };
                let wanted = format!("{kind},cifar10,preactresnet18,0123456789ab,{},{},", block.attack, row.defense);
                let line = csv.lines().find(|l| l.starts_with(&wanted)).expect("a line per row");
                let line = fields(line);
                let (shown_seeds, flags) = (line[at("seeds")], line[at("flags")]);
                if block.average {
                    let all: Vec<_> = (0..3).map(on_disk).collect();
                    let same = all.iter().all(|s| *s == all[0]);
                    let whole = all.iter().all(|s| !s.is_empty());
                    prop_assert_eq!(shown.contains('§'), whole && !same);
                    prop_assert_eq!(flags == "seeds_differ", whole && !same);
                    prop_assert_eq!(shown_seeds, if same { list(&all[0]) } else { String::new() });
                } else {
                    let own = on_disk(attack);
                    let few = !own.is_empty() && own.len() < seeds.len();
                    let note = format!("{} (n={} of {})", row.defense, own.len(), seeds.len());
                    prop_assert_eq!(shown.contains("(n="), few, "{}", shown);
                    prop_assert!(!few || shown.contains(&note), "{}", shown);
                    prop_assert_eq!(flags == "fewer_seeds", few);
                    prop_assert_eq!(shown_seeds, list(&own));
                    prop_assert_eq!(&row.seeds, &own);
                }
            }
        }
    }

    /// What text, Markdown and LaTeX print is what CSV says, rounded.
    #[test]
    fn writers_agree(
        attacks in 1_usize..4,
        defenses in 1_usize..4,
        cells in prop::collection::vec((0_usize..4, 0_usize..4, 0_u64..3, 0_u64..=10_000, 0_u64..=9_000), 0..40),
    ) {
        let names = ["badnets", "blended", "sig", "lf"];
        let column = |d| match d {
            0 => DefenseColumn::undefended(),
            _ => defense("ft", &format!("d{d}"), Role::Defended),
        };
        let input = Input {
            attacks: names[..attacks].iter().map(|a| attack(a, 64)).collect(),
            defenses: (0..defenses).map(column).collect(),
            seeds: vec![0, 1],
            observations: cells
                .into_iter()
                .filter(|c| c.0 < attacks && c.1 < defenses)
                .map(|(attack, defense, seed, acc, asr)| Observation {
                    attack,
                    defense,
                    seed,
                    scores: scores(acc, asr, 9_000 - asr),
                    before: (defense > 0).then(|| scores(9_000, 8_000, 100)),
                    seconds: None,
                    peak_kib: None,
                })
                .collect(),
            ..Input::default()
        };
        let table = Table::new(&input);
        let csv = csv::write(std::slice::from_ref(&table));
        let mut lines = csv.lines();
        let header = fields(lines.next().expect("a header"));
        let at = |name: &str| header.iter().position(|h| *h == name).expect("a column");
        let rows: Vec<_> = lines.map(fields).filter(|f| f[0] != "cell").collect();
        let markdown = markdown::write(&table, &Layout::Long.into());
        let markdown: Vec<Vec<&str>> = markdown
            .lines()
            .filter(|l| l.starts_with('|'))
            .skip(2)
            .map(|l| l.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        let latex = latex::write(&table, &Layout::Long.into());
        let latex: Vec<Vec<&str>> = latex
            .lines()
            .filter(|l| l.ends_with("\\\\"))
            .skip_while(|l| !l.starts_with("attack"))
            .skip(1)
            .map(|l| l.trim_end_matches(" \\\\").split(" & ").collect())
            .collect();
        let text = text::write(&table, &Layout::Long.into());
        prop_assert_eq!(markdown.len(), rows.len());
        prop_assert_eq!(latex.len(), rows.len());
        for ((row, markdown), latex) in rows.iter().zip(&markdown).zip(&latex) {
            let unsigned = markdown[1].split([' ', '§']).next().unwrap_or_default();
            let whole = if row[5] == "No defense" { "No" } else { row[5] };
            prop_assert_eq!([row[4], whole], [markdown[0], unsigned]);
            for (i, name) in COLUMNS.iter().enumerate() {
                let (cell, latex) = (markdown[2 + i], latex[2 + i]);
                prop_assert_eq!(cell.contains("**"), latex.contains("\\textbf"));
                let cell = cell.trim_matches('*');
                let latex = latex.replace("\\textbf{", "").replace('}', "").replace("$\\pm$", "±");
                prop_assert_eq!(cell, latex.as_str());
                if let Ok(exact) = row[at(name)].parse::<f64>() {
                    let mean = cell.split(' ').next().unwrap_or_default();
                    let shown: f64 = mean.parse().expect("a number");
                    prop_assert!((shown - exact).abs() <= 0.005_001, "{} {}", shown, exact);
                    prop_assert!(text.contains(mean), "{}", mean);
                } else {
                    prop_assert!(cell.is_empty() || cell == "-", "{}", cell);
                }
            }
        }
    }
}

#[test]
fn a_verdict_is_of_models_without_a_defense_in_the_published_setting() {
    let verdicts = |input: &Input| -> Vec<Option<bool>> {
        let table = Table::new(input);
        let rows = table.blocks.iter().flat_map(|block| &block.rows);
        rows.map(|row| row.paper.and_then(|paper| paper.agrees))
            .collect()
    };
    let only = |agrees: [Option<bool>; 2]| -> Vec<Option<bool>> {
        let none = [None; 3];
        let attacks = agrees.map(|agrees| [&[agrees][..], &none].concat());
        [&attacks.concat()[..], &[None; 4]].concat()
    };
    let mut input = input(64);
    assert_eq!(verdicts(&input), only([Some(true), Some(true)]));

    // BadNets 1.00 points of ACC off, Blended 3.01 of ASR.
    let set = |input: &mut Input, attack: usize, scores: Scores| {
        let own = |o: &&mut Observation| (o.attack, o.defense) == (attack, 0);
        let found = input.observations.iter_mut().find(own);
        found.expect("it was measured").scores = scores;
    };
    set(&mut input, 0, scores(9032, 8553, 400));
    set(&mut input, 1, scores(9347, 8721, 5));
    assert_eq!(verdicts(&input), only([Some(true), Some(false)]));
    let notes = Table::new(&input).paper_notes.join("\n");
    let expect = "\
without defense as published, within (in ACC, ASR): badnets (1.00, 6.00)
without defense not as published, beyond (in ACC, ASR): blended (1.00, 3.00)";
    assert!(notes.contains(expect), "{notes}");
    let csv = csv::write(std::slice::from_ref(&Table::new(&input)));
    assert!(
        csv.contains(",agrees,\n") && csv.contains(",differs,\n"),
        "{csv}"
    );

    input.attacks[1].facts.epochs = Some(50);
    assert_eq!(verdicts(&input), only([Some(true), None]));
    input.attacks[0].facts.unlike = None;
    assert_eq!(verdicts(&input), only([None, None]));
}
