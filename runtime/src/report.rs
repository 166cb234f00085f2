//! Self-contained HTML pages with tables and plots, for the commands `trafficllm report` and `trafficllm-train evaluate`.
//!
//! A page needs nothing but itself: no script, no style sheet, no font and no picture comes from elsewhere, so that it can be
//! mailed, archived and opened without a network. Whatever comes from outside is escaped.

pub mod plot;

use std::fmt::Write;

/// The style of all pages; plain, readable in print and on dark screens.
const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
h1{font-size:1.6rem}h2{font-size:1.25rem;margin-top:2.5rem;border-bottom:1px solid #ccc}h3{font-size:1.05rem}\
table{border-collapse:collapse;margin:.7rem 0;font-size:13px}caption{text-align:left;font-weight:600;padding:.2rem 0}\
th,td{padding:.15rem .6rem;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}th{background:#f3f3f3}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}figure{margin:1rem 0;overflow-x:auto}figcaption{font-size:13px;color:#555}\
nav{font-size:14px}nav a{margin-right:1rem}svg{max-width:none}.scroll{overflow-x:auto}";

/// A page that is being written.
#[derive(Clone, Debug)]
pub struct Page {
    title: String,
    body: String,
    /// Headings of the second level; their place in the page is `s` and their number.
    sections: Vec<String>,
}

impl Page {
    /// A page with this title.
    #[must_use]
    pub fn new(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            body: String::new(),
            sections: Vec::new(),
        }
    }

    /// Begins a section; the page's list of contents leads there.
    pub fn section(&mut self, heading: &str) {
        self.sections.push(heading.to_owned());
        let number = self.sections.len();
        self.push(format_args!(
            "<h2 id=\"s{number}\">{}</h2>\n",
            escaped(heading)
        ));
    }

    /// A heading inside a section.
    pub fn heading(&mut self, heading: &str) {
        self.push(format_args!("<h3>{}</h3>\n", escaped(heading)));
    }

    /// A paragraph.
    pub fn paragraph(&mut self, text: &str) {
        self.push(format_args!("<p>{}</p>\n", escaped(text)));
    }

    /// A table. The first column is text, the others are numbers and stand at the right. Cells that a row lacks are left empty.
    pub fn table(&mut self, caption: &str, head: &[&str], rows: &[Vec<String>]) {
        let class = |column: usize| if column == 0 { "" } else { " class=\"n\"" };
        self.push(format_args!(
            "<div class=\"scroll\"><table><caption>{}</caption>\n<tr>",
            escaped(caption)
        ));
        for (column, name) in head.iter().enumerate() {
            self.push(format_args!("<th{}>{}</th>", class(column), escaped(name)));
        }
        self.body.push_str("</tr>\n");
        for row in rows {
            self.body.push_str("<tr>");
            for column in 0..head.len() {
                let cell = row.get(column).map_or("", String::as_str);
                self.push(format_args!("<td{}>{}</td>", class(column), escaped(cell)));
            }
            self.body.push_str("</tr>\n");
        }
        self.body.push_str("</table></div>\n");
    }

    /// A plot with what it shows, in words.
    pub fn figure(&mut self, plot: &plot::Plot, caption: &str) {
        self.push(format_args!(
            "<figure>{}<figcaption>{}</figcaption></figure>\n",
            plot.svg(),
            escaped(caption)
        ));
    }

    /// The whole page.
    #[must_use]
    pub fn finish(self) -> String {
        let title = escaped(&self.title);
        let mut contents = String::new();
        for (index, section) in self.sections.iter().enumerate() {
            // Writing to a text cannot fail.
            let _infallible = write!(
                contents,
                "<a href=\"#s{}\">{}</a>",
                index + 1,
                escaped(section)
            );
        }
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
             <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head>\n\
             <body><h1>{title}</h1>\n<nav>{contents}</nav>\n{}</body></html>\n",
            self.body
        )
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a text cannot fail.
        let _infallible = self.body.write_fmt(text);
    }
}

/// Whether a character does something to the text around it instead of being read: control characters, breaks of lines and paragraphs,
/// what changes the direction of text, and format characters without a width. With the latter two a name from outside could look like
/// another one (Unicode Technical Report 36, "Unicode Security Considerations").
#[must_use]
pub fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Text as it can stand in an element or an attribute. What [`is_unprintable`] is shown as its Rust escape.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other if is_unprintable(other) => out.extend(other.escape_default()),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_is_escaped_everywhere() {
        let hostile = "<script>alert('1')</script>&\"\u{1b}";
        let mut page = Page::new(hostile);
        page.section(hostile);
        page.heading(hostile);
        page.paragraph(hostile);
        page.table(hostile, &[hostile, "n"], &[vec![hostile.to_owned()]]);
        let plot = plot::bars(
            hostile,
            &[hostile.to_owned()],
            &[(hostile, vec![1.0])],
            plot::Scale::Share,
        );
        page.figure(&plot.unwrap(), hostile);
        let html = page.finish();
        assert!(!html.contains("<script"), "{html}");
        assert!(!html.contains('\u{1b}'));
        let escaped = "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&quot;\\u{1b}";
        assert!(html.matches(escaped).count() >= 8, "{html}");
    }

    #[test]
    fn characters_that_turn_or_hide_text_are_shown_as_escapes() {
        let ranges = [
            '\u{200b}'..='\u{200f}',
            '\u{202a}'..='\u{202e}',
            '\u{2060}'..='\u{2069}',
            '\u{feff}'..='\u{feff}',
            '\u{61c}'..='\u{61c}',
        ];
        for character in ranges.into_iter().flatten() {
            let shown = format!("a\\u{{{:x}}}b", u32::from(character));
            assert_eq!(escaped(&format!("a{character}b")), shown);
        }
        let plain = "é עברית العربية 漢字 🦀 \u{200a}\u{2010}\u{2027}\u{202f}\u{205f}\u{2070}";
        assert_eq!(escaped(plain), plain);
        let hostile = "exe.\u{202e}gpj";
        let plot = plot::bars(
            hostile,
            &[hostile.to_owned()],
            &[(hostile, vec![1.0])],
            plot::Scale::Share,
        )
        .unwrap();
        assert!(!plot.svg().contains('\u{202e}'), "{}", plot.svg());
        assert_eq!(plot.svg().matches("exe.\\u{202e}gpj").count(), 3);
    }

    #[test]
    fn a_page_needs_nothing_but_itself() {
        let mut page = Page::new("one");
        page.section("numbers");
        page.table(
            "a table",
            &["name", "value"],
            &[vec!["a".into(), "0.25".into()], vec!["b".into()]],
        );
        let html = page.finish();
        assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</body></html>\n"));
        for foreign in [
            "src=", "url(", "@import", "<link", "<script", "http://", "https://",
        ] {
            assert!(!html.contains(foreign), "{foreign}");
        }
        assert!(html.contains("<td>a</td><td class=\"n\">0.25</td>"));
        assert!(
            html.contains("<td>b</td><td class=\"n\"></td>"),
            "a short row is filled up"
        );
        assert!(html.contains("<a href=\"#s1\">numbers</a>") && html.contains("<h2 id=\"s1\">"));
    }
}
