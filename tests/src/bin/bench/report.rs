//! What was measured, for people as tables and for programs as JSON.

use serde_json::{Value, json};

/// One figure.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) subject: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) ratio: Option<f64>,
}

/// All figures so far; as a table they are printed as they come.
pub(crate) struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
    speaks: bool,
}

impl Report {
    pub(crate) fn new(speaks: bool) -> Self {
        Self { rows: Vec::new(), notes: Vec::new(), speaks }
    }

    /// A heading of the table.
    pub(crate) fn section(&self, title: &str, peer: &str) {
        if self.speaks {
            println!("\n{title}");
            println!("{:<42} {:<16} {:>14}  {:>8}", "what", "program", "median", format!("× {peer}"));
        }
    }

    /// A line that says what a figure means or why there is none.
    pub(crate) fn note(&mut self, note: &str) {
        if self.speaks {
            println!("  {note}");
        }
        self.notes.push(note.to_owned());
    }

    pub(crate) fn add(&mut self, rows: Vec<Row>) {
        for row in rows {
            if self.speaks {
                let ratio = row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
                let value = format!("{:.2} {}", row.value, row.unit);
                println!("{:<42} {:<16} {value:>14}  {ratio:>8}", row.what, row.subject);
            }
            self.rows.push(row);
        }
    }

    pub(crate) fn json(&self) -> Value {
        let row = |row: &Row| json!({"what": row.what, "program": row.subject, "median": row.value, "unit": row.unit, "ratio": row.ratio});
        json!({"rows": self.rows.iter().map(row).collect::<Vec<_>>(), "notes": self.notes})
    }
}
