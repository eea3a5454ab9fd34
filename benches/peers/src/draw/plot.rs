//! The kinds of plots: bars, spans and lines.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::table::grouped;
use crate::contestant::{FLOOR, ONCEKEY};
use crate::results::readable;

pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const INK: RGBColor = RGBColor(40, 40, 40);
const PALE: RGBColor = RGBColor(225, 225, 225);
/// The width of the column of names, to the left of the bars.
const NAMES_WIDTH: i32 = 120;
const TITLE_HEIGHT: i32 = 40;
const ROW_HEIGHT: i32 = 24;

/// The values of one contestant.
pub struct Row<'a> {
    pub name: &'a str,
    pub values: Vec<f64>,
}

/// Returns the colour of a contestant, which is the same in all plots.
pub fn colour(name: &str) -> RGBColor {
    let base = name.split(' ').next().unwrap_or(name);
    match base {
        ONCEKEY => RGBColor(200, 30, 50),
        FLOOR => RGBColor(150, 150, 150),
        "redb" => RGBColor(70, 130, 180),
        "fjall" => RGBColor(46, 139, 87),
        "LMDB" => RGBColor(148, 103, 189),
        "SQLite" => RGBColor(214, 138, 26),
        "RocksDB" => RGBColor(110, 85, 50),
        _ => RGBColor(20, 150, 160),
    }
}

fn text(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

fn write(area: &Area<'_>, words: &str, at: (i32, i32), size: i32, horizontal: HPos) {
    let style = text(size).pos(Pos::new(horizontal, VPos::Center));
    area.draw(&Text::new(words.to_owned(), at, style)).expect("cannot draw text");
}

fn shape(area: &Area<'_>, from: (i32, i32), to: (i32, i32), style: ShapeStyle) {
    area.draw(&Rectangle::new([from, to], style)).expect("cannot draw a rectangle");
}

fn width_of(area: &Area<'_>) -> i32 {
    i32::try_from(area.dim_in_pixel().0).expect("the plot should be small")
}

/// Returns the height of a panel with this many rows.
pub fn height_of_rows(rows: usize) -> u32 {
    u32::try_from(TITLE_HEIGHT + ROW_HEIGHT * i32::try_from(rows).expect("the number should be small") + 12)
        .expect("the height should be positive")
}

/// Draws a horizontal bar for each row, with its value at the end.
pub fn bars(area: &Area<'_>, title: &str, rows: &[Row<'_>], metric: &str) {
    write(area, title, (8, TITLE_HEIGHT / 2), 15, HPos::Left);
    let highest = rows.iter().map(|row| row.values[0]).fold(0.0, f64::max);
    let width = f64::from(width_of(area) - NAMES_WIDTH - 80);
    let mut top = TITLE_HEIGHT;
    for row in rows {
        let (middle, value) = (top + ROW_HEIGHT / 2, row.values[0]);
        let length = (width * value / highest) as i32;
        write(area, row.name, (NAMES_WIDTH - 6, middle), 12, HPos::Right);
        let style = if row.name.contains(' ') {
            colour(row.name).mix(0.55).filled()
        } else {
            colour(row.name).filled()
        };
        shape(area, (NAMES_WIDTH, top + 3), (NAMES_WIDTH + length.max(1), top + ROW_HEIGHT - 3), style);
        let end = NAMES_WIDTH + length + 5;
        write(area, &readable(metric, value), (end, middle), 11, HPos::Left);
        top += ROW_HEIGHT;
    }
}

/// Draws a line for each row, from its lowest to its highest value and with a mark at every value. The axis is logarithmic.
pub fn spans(area: &Area<'_>, title: &str, rows: &[Row<'_>], metric: &str) {
    write(area, title, (8, TITLE_HEIGHT / 2 - 7), 15, HPos::Left);
    let values = || rows.iter().flat_map(|row| row.values.iter().copied()).filter(|value| *value > 0.0);
    let lowest = values().fold(f64::INFINITY, f64::min).log10().floor();
    let highest = values().fold(0.0, f64::max).log10().ceil().max(lowest + 1.0);
    let width = f64::from(width_of(area) - NAMES_WIDTH - 30);
    let across =
        |value: f64| NAMES_WIDTH + (width * (value.max(1.0).log10() - lowest) / (highest - lowest)) as i32;
    let bottom = TITLE_HEIGHT + ROW_HEIGHT * i32::try_from(rows.len()).expect("the number should be small");
    for power in (lowest as i32)..=(highest as i32) {
        let value = 10_f64.powi(power);
        let x = across(value);
        shape(area, (x, TITLE_HEIGHT), (x, bottom), PALE.stroke_width(1));
        write(area, &readable(metric, value), (x, TITLE_HEIGHT - 7), 10, HPos::Center);
    }
    let mut top = TITLE_HEIGHT;
    for row in rows {
        let middle = top + ROW_HEIGHT / 2;
        write(area, row.name, (NAMES_WIDTH - 6, middle), 12, HPos::Right);
        let ends = (row.values.first().copied(), row.values.last().copied());
        if let (Some(first), Some(last)) = ends {
            let style = colour(row.name).mix(0.4).filled();
            shape(area, (across(first), middle - 1), (across(last), middle + 1), style);
        }
        for value in &row.values {
            let mark = Circle::new((across(*value), middle), 4, colour(row.name).filled());
            area.draw(&mark).expect("cannot draw a circle");
        }
        top += ROW_HEIGHT;
    }
}

/// Whether the value is about a power of ten.
fn is_round(value: f64) -> bool {
    (value.log10() - value.log10().round()).abs() < 1e-3
}

/// Draws lines over the number of operations. Both axes are logarithmic.
pub fn lines(area: &Area<'_>, title: &str, series: &[(&str, Vec<(u64, f64)>)], metric: &str) {
    let points = || series.iter().flat_map(|(_, points)| points.iter().copied());
    let keys = points().map(|(keys, _)| keys);
    let (min_keys, max_keys) = (keys.clone().min().unwrap_or(1), keys.max().unwrap_or(1));
    let values = points().map(|(_, value)| value).filter(|value| *value > 0.0);
    let lowest = values.clone().fold(f64::INFINITY, f64::min);
    let highest = values.fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, text(15))
        .margin(10)
        .margin_right(24)
        .x_label_area_size(28)
        .y_label_area_size(64)
        .build_cartesian_2d(
            (min_keys as f64 * 0.9..(max_keys as f64 * 1.1).max(min_keys as f64 * 2.0)).log_scale(),
            (lowest * 0.7..highest * 1.5).log_scale(),
        )
        .expect("cannot draw the axes");
    chart
        .configure_mesh()
        .max_light_lines(0)
        .bold_line_style(PALE)
        .x_label_formatter(&|keys| if is_round(*keys) { grouped(keys.round() as u64) } else { String::new() })
        .y_label_formatter(&|value| readable(metric, *value))
        .y_labels(6)
        .label_style(text(11))
        .draw()
        .expect("cannot draw the mesh");
    for (name, points) in series {
        let width = if *name == ONCEKEY { 3 } else { 2 };
        let points: Vec<(f64, f64)> = points.iter().map(|(keys, value)| (*keys as f64, *value)).collect();
        let style = colour(name).stroke_width(width);
        chart.draw_series(LineSeries::new(points.iter().copied(), style)).expect("cannot draw a line");
        let marks = points.iter().map(|point| Circle::new(*point, 3, colour(name).filled()));
        chart.draw_series(marks).expect("cannot draw the marks");
    }
}

/// Draws the colour and the name of each contestant.
pub fn legend(area: &Area<'_>, names: &[&str]) {
    let step = (width_of(area) - 80) / i32::try_from(names.len().max(1)).expect("the number should be small");
    for (turn, name) in names.iter().enumerate() {
        let left = 70 + step * i32::try_from(turn).expect("the number should be small");
        shape(area, (left, 9), (left + 16, 15), colour(name).filled());
        write(area, name, (left + 22, 12), 12, HPos::Left);
    }
}
