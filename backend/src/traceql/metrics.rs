//! Tokens to tree: metrics functions and what thins their series out.

use super::ast::{Hint, MetricsExpr, MetricsFunction, SecondStage};
use super::error::TraceQlError;
use super::lexer::TokenKind;
use super::names::Field;
use super::operators::{comparison, is_order};
use super::parser::{Deep, Parser};
use super::suggest::nearest;

impl Parser {
    /// The metrics function that comes next, if one does.
    pub(super) fn metrics_function(&mut self, first: bool) -> Result<Option<MetricsFunction>, TraceQlError> {
        type Make = fn(Field) -> MetricsFunction;
        let Some(word) = self.word() else { return Ok(None) };
        let make: Option<Make> = match word {
            "min_over_time" => Some(MetricsFunction::MinOverTime),
            "max_over_time" => Some(MetricsFunction::MaxOverTime),
            "avg_over_time" => Some(MetricsFunction::AvgOverTime),
            "sum_over_time" => Some(MetricsFunction::SumOverTime),
            "histogram_over_time" => Some(MetricsFunction::HistogramOverTime),
            _ => None,
        };
        let word = word.to_owned();
        if first && (make.is_some() || ["rate", "count_over_time", "quantile_over_time", "compare"].contains(&&*word)) {
            return Err(self.unexpected("a spanset before a metrics function, as in { } | rate()"));
        }
        if let Some(make) = make {
            self.advance();
            self.expect("(")?;
            let field = self.field()?;
            self.expect(")")?;
            return Ok(Some(make(field)));
        }
        let function = match &*word {
            "rate" | "count_over_time" => {
                self.advance();
                self.expect("(")?;
                if word == "rate" { MetricsFunction::Rate } else { MetricsFunction::CountOverTime }
            }
            "quantile_over_time" => {
                self.advance();
                self.expect("(")?;
                let field = self.field()?;
                let mut quantiles = Vec::new();
                while self.eat(",") {
                    quantiles.push(self.quantile()?);
                }
                if quantiles.is_empty() {
                    return Err(self.unexpected("\",\" and a quantile"));
                }
                MetricsFunction::QuantileOverTime(field, quantiles)
            }
            "compare" => {
                self.advance();
                self.expect("(")?;
                let (filter, _) = self.spanset_filter()?;
                let top = if self.eat(",") { self.integer()? } else { 10 };
                let range = if self.eat(",") {
                    let start = self.integer()?;
                    self.expect(",")?;
                    Some((start, self.integer()?))
                } else {
                    None
                };
                MetricsFunction::Compare { filter, top, range }
            }
            _ => return Ok(None),
        };
        self.expect(")")?;
        Ok(Some(function))
    }

    fn quantile(&mut self) -> Result<f64, TraceQlError> {
        let quantile = match self.peek() {
            TokenKind::Int(i) => *i as f64,
            TokenKind::Float(f) => *f,
            _ => return Err(self.unexpected("a quantile")),
        };
        self.advance();
        Ok(quantile)
    }

    fn integer(&mut self) -> Result<i64, TraceQlError> {
        let TokenKind::Int(value) = *self.peek() else {
            return Err(self.unexpected("an integer"));
        };
        self.advance();
        Ok(value)
    }

    /// `| topk(n)`, `| bottomk(n)`, `> 5`, any number of them.
    pub(super) fn second_stages(
        &mut self,
        metrics: MetricsExpr,
        height: usize,
    ) -> Result<Deep<MetricsExpr>, TraceQlError> {
        let (mut metrics, mut height) = (metrics, height);
        loop {
            let stage = if let Some(op) = self.sign().and_then(comparison).filter(|op| is_order(*op)) {
                self.advance();
                let Some(literal) = self.number() else {
                    return Err(self.unexpected("a number or a duration"));
                };
                SecondStage::Filter(op, literal)
            } else if self.eat("|") {
                let bottom = self.word() == Some("bottomk");
                if !bottom && self.word() != Some("topk") {
                    let nearest = self.word().and_then(|word| nearest(word, ["topk", "bottomk"]));
                    return Err(self.unexpected(&match nearest {
                        Some(name) => format!("\"topk\" or \"bottomk\"; did you mean \"{name}\"?"),
                        None => "\"topk\" or \"bottomk\"".to_owned(),
                    }));
                }
                self.advance();
                self.expect("(")?;
                let count = self.integer()?;
                self.expect(")")?;
                if bottom { SecondStage::BottomK(count) } else { SecondStage::TopK(count) }
            } else {
                return Ok((metrics, height));
            };
            metrics = MetricsExpr::Second(Box::new(metrics), stage);
            height += 1;
            self.check_height(height)?;
        }
    }

    /// `name=value`.
    pub(super) fn hint(&mut self) -> Result<Hint, TraceQlError> {
        let Some(name) = self.word().map(str::to_owned) else {
            return Err(self.unexpected("the name of a hint"));
        };
        self.advance();
        self.expect("=")?;
        let Some(value) = self.number().or_else(|| self.literal()) else {
            return Err(self.unexpected("a value"));
        };
        Ok(Hint { name, value })
    }
}
