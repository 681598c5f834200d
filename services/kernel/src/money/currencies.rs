//! The supported currencies: those of ISO 4217 with wide use in commerce.

/// A currency.
pub(super) struct Row {
    pub(super) code: &'static str,
    /// The exponent of ISO 4217.
    pub(super) minor_digits: usize,
    /// Approximately what EUR 1,000 was worth in 2025, in whole units, to one or two digits: by the euro foreign
    /// exchange reference rates of the European Central Bank, or else by the country's central bank. For limits, which
    /// only need the right magnitude; payments are never converted.
    pub(super) per_thousand_euros: i64,
}

const fn row(code: &'static str, minor_digits: usize, per_thousand_euros: i64) -> Row {
    Row { code, minor_digits, per_thousand_euros }
}

#[rustfmt::skip]
const ROWS: [Row; 50] = [
    row("AED", 2,      4_000), row("ARS", 2,  1_500_000), row("AUD", 2,      1_800),
    row("BGN", 2,      2_000), row("BHD", 3,        400), row("BRL", 2,      6_000),
    row("CAD", 2,      1_600), row("CHF", 2,      1_000), row("CLP", 0,  1_000_000),
    row("CNY", 2,      8_000), row("COP", 2,  4_500_000), row("CZK", 2,     25_000),
    row("DKK", 2,      7_500), row("EGP", 2,     55_000), row("EUR", 2,      1_000),
    row("GBP", 2,        900), row("HKD", 2,      9_000), row("HUF", 2,    400_000),
    row("IDR", 2, 18_000_000), row("ILS", 2,      4_000), row("INR", 2,    100_000),
    row("ISK", 0,    150_000), row("JOD", 3,        800), row("JPY", 0,    170_000),
    row("KRW", 0,  1_600_000), row("KWD", 3,        350), row("MAD", 2,     10_000),
    row("MXN", 2,     20_000), row("MYR", 2,      5_000), row("NGN", 2,  1_700_000),
    row("NOK", 2,     12_000), row("NZD", 2,      2_000), row("OMR", 3,        450),
    row("PEN", 2,      4_000), row("PHP", 2,     65_000), row("PLN", 2,      4_500),
    row("QAR", 2,      4_000), row("RON", 2,      5_000), row("SAR", 2,      4_500),
    row("SEK", 2,     11_000), row("SGD", 2,      1_500), row("THB", 2,     40_000),
    row("TND", 3,      3_500), row("TRY", 2,     50_000), row("TWD", 2,     35_000),
    row("UAH", 2,     50_000), row("USD", 2,      1_000), row("UYU", 2,     45_000),
    row("VND", 0, 30_000_000), row("ZAR", 2,     20_000),
];

/// Finds a currency by its code.
pub(super) fn find(code: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.code == code)
}
