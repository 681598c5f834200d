//! `--plot` of `load` and `chaos`: throughput and latency over time as an SVG picture, with each injected fault marked.

use std::path::Path;
use std::time::Duration;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::error::Error;

const SIZE: (u32, u32) = (900, 560);
/// Of a point of a line; longer for a run with more than [`MAX_POINTS`].
const MIN_INTERVAL: Duration = Duration::from_millis(500);
const MAX_POINTS: u32 = 150;
/// Below it a latency is drawn as this: the axis is logarithmic.
const MIN_LATENCY_MS: f64 = 1.0;
/// Of lines, and of marks.
const COLOURS: [RGBColor; 2] = [RGBColor(31, 119, 180), RGBColor(214, 39, 40)];
const MARK_COLOURS: [RGBColor; 6] = [
    RGBColor(150, 150, 150),
    RGBColor(255, 127, 14),
    RGBColor(148, 103, 189),
    RGBColor(23, 160, 60),
    RGBColor(0, 0, 0),
    RGBColor(140, 86, 75),
];

/// An observation: when, since the start, and its latency.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Sample {
    pub(crate) at: Duration,
    pub(crate) latency: Duration,
}

/// What is drawn.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plot {
    pub(crate) title: String,
    /// How long the run took.
    pub(crate) took: Duration,
    pub(crate) acknowledged: Vec<Sample>,
    pub(crate) finished: Vec<Sample>,
    /// When a fault was injected, and its kind.
    pub(crate) marks: Vec<(Duration, &'static str)>,
}

/// A line's points: seconds and the value.
type Points = Vec<(f64, f64)>;

impl Plot {
    /// Writes the picture.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Error> {
        let mut picture = String::new();
        // Drawn into memory: it fails for an empty range only, and there is none.
        self.draw(&mut picture).map_err(|error| Error::Usage(format!("the plot cannot be drawn: {error}")))?;
        std::fs::write(path, picture).map_err(|source| Error::File { path: path.to_owned(), action: "written", source })
    }

    fn interval(&self) -> Duration {
        MIN_INTERVAL.max(self.took / MAX_POINTS)
    }

    /// The samples of each interval, and its end in seconds.
    fn buckets(&self, samples: &[Sample]) -> Vec<(f64, Vec<Duration>)> {
        let interval = self.interval().as_secs_f64();
        let index = |at: Duration| (at.as_secs_f64() / interval) as usize;
        let mut buckets: Vec<_> = (0..=index(self.took)).map(|end| ((end + 1) as f64 * interval, vec![])).collect();
        // The last interval is not over: it would look like a fall.
        buckets.pop();
        for sample in samples {
            if let Some((_, bucket)) = buckets.get_mut(index(sample.at)) {
                bucket.push(sample.latency);
            }
        }
        buckets
    }

    fn rate(&self, samples: &[Sample]) -> Points {
        let interval = self.interval().as_secs_f64();
        self.buckets(samples).into_iter().map(|(end, bucket)| (end, bucket.len() as f64 / interval)).collect()
    }

    /// A quantile of the latencies in milliseconds, where there are any.
    fn quantile(&self, samples: &[Sample], quantile: f64) -> Points {
        let of = |mut bucket: Vec<Duration>| {
            bucket.sort_unstable();
            let index = (bucket.len().checked_sub(1)? as f64 * quantile).round() as usize;
            Some((bucket.get(index)?.as_secs_f64() * 1_000.0).max(MIN_LATENCY_MS))
        };
        self.buckets(samples).into_iter().filter_map(|(end, bucket)| Some((end, of(bucket)?))).collect()
    }

    fn draw(&self, picture: &mut String) -> Result<(), Box<dyn std::error::Error + '_>> {
        let area = SVGBackend::with_string(picture, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let area = area.titled(&self.title, ("sans-serif", 18))?;
        let (rates, latencies) = area.split_vertically(SIZE.1 / 2 - 10);
        let (acknowledged, finished) = (self.rate(&self.acknowledged), self.rate(&self.finished));
        let top = (highest(&acknowledged, &finished) * 1.1).max(1.0);
        let lines = [("acknowledged", acknowledged), ("finished", finished)];
        self.panel(&rates, 0.0..top, (0.0, top), "orders/s", lines)?;
        let (p50, p99) = (self.quantile(&self.finished, 0.5), self.quantile(&self.finished, 0.99));
        let top = (highest(&p50, &p99) * 1.5).max(10.0 * MIN_LATENCY_MS);
        let lines = [("p50", p50), ("p99", p99)];
        let range = (MIN_LATENCY_MS..top).log_scale();
        self.panel(&latencies, range, (MIN_LATENCY_MS, top), "ms until finished", lines)?;
        area.present()?;
        Ok(())
    }

    fn panel<'a, Y>(
        &self,
        area: &DrawingArea<SVGBackend<'a>, Shift>,
        range: Y,
        (bottom, top): (f64, f64),
        unit: &str,
        lines: [(&'static str, Points); 2],
    ) -> Result<(), Box<dyn std::error::Error>>
    where
        Y: plotters::coord::ranged1d::AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + plotters::coord::ranged1d::ValueFormatter<f64>,
    {
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .x_label_area_size(26)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..self.took.as_secs_f64().max(1.0), range)?;
        chart.configure_mesh().x_desc("s").y_desc(unit).light_line_style(WHITE).draw()?;
        let mut kinds: Vec<&'static str> = self.marks.iter().map(|(_, kind)| *kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for (number, kind) in kinds.into_iter().enumerate() {
            let colour = MARK_COLOURS[number % MARK_COLOURS.len()];
            let marks = self.marks.iter().filter(|(_, other)| *other == kind).map(|(at, _)| at.as_secs_f64());
            chart
                .draw_series(marks.map(|at| PathElement::new([(at, bottom), (at, top)], colour.mix(0.7))))?
                .label(kind)
                .legend(move |(x, y)| PathElement::new([(x + 8, y - 5), (x + 8, y + 5)], colour));
        }
        for ((name, points), colour) in lines.into_iter().zip(COLOURS) {
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        Ok(())
    }
}

fn highest(a: &Points, b: &Points) -> f64 {
    a.iter().chain(b).map(|(_, value)| *value).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: u64, latency: u64) -> Sample {
        Sample { at: Duration::from_millis(at), latency: Duration::from_millis(latency) }
    }

    #[test]
    fn rates_and_quantiles_are_those_of_each_whole_interval() {
        let plot = Plot { took: Duration::from_millis(1_900), ..Plot::default() };
        let samples = [sample(0, 10), sample(499, 30), sample(1_000, 0), sample(1_600, 70)];
        assert_eq!(plot.rate(&samples), [(0.5, 4.0), (1.0, 0.0), (1.5, 2.0)]);
        assert_eq!(plot.quantile(&samples, 0.99), [(0.5, 30.0), (1.5, MIN_LATENCY_MS)]);
        let long = Plot { took: Duration::from_secs(3_600), ..Plot::default() };
        assert!(long.rate(&samples).len() <= MAX_POINTS as usize);
    }

    #[test]
    fn the_picture_has_both_panels_and_each_kind_of_mark() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run.svg");
        let samples: Vec<_> = (0..400).map(|number| sample(number * 10, number % 90)).collect();
        let plot = Plot {
            title: "load <of> a test".into(),
            took: Duration::from_secs(4),
            acknowledged: samples.clone(),
            finished: samples,
            marks: vec![(Duration::from_secs(1), "kill -9 of one"), (Duration::from_secs(2), "kill -9 of one")],
        };
        plot.write(&path).expect("written");
        let picture = std::fs::read_to_string(&path).expect("readable");
        for text in
            ["<svg", "load &lt;of&gt; a test", "orders/s", "ms until finished", "acknowledged", "p99", "kill -9 of one"]
        {
            assert!(picture.contains(text), "{text}");
        }
        assert!(picture.len() < 60_000, "{}", picture.len());
        let error = plot.write(&folder.path().join("none/run.svg")).expect_err("no such folder");
        assert!(matches!(error, Error::File { .. }));
    }

    #[test]
    fn a_run_without_orders_has_a_picture_too() {
        let folder = tempfile::tempdir().expect("a folder");
        Plot::default().write(&folder.path().join("run.svg")).expect("written");
    }
}
