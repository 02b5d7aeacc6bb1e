"""Names of money and of units, by the sign that stands for them: "one several", or "one" if several have an s; "|" before what stays."""

import re

MONEY = {
    "$": "dollar cent", "€": "euro cent", "£": "pound pence", "¥": "yen", "₹": "rupee paisa", "₩": "won", "₽": "ruble kopek",
    "₿": "bitcoin", "₺": "lira", "₪": "shekel", "₫": "dong", "฿": "baht", "₦": "naira", "₴": "hryvnia", "₱": "peso centavo", "¢": "cent",
    "US$": "US-dollar cent", "C$": "Canadian-dollar cent", "CA$": "Canadian-dollar cent", "A$": "Australian-dollar cent",
    "AU$": "Australian-dollar cent", "NZ$": "New-Zealand-dollar cent", "HK$": "Hong-Kong-dollar cent", "R$": "real centavo",
    "USD": "US-dollar cent", "EUR": "euro cent", "GBP": "pound pence", "JPY": "yen", "CHF": "franc", "INR": "rupee paisa",
    "CAD": "Canadian-dollar cent", "AUD": "Australian-dollar cent", "CNY": "yuan",
}  # fmt: skip
UNCOUNTED = frozenset({"yen", "won", "baht", "yuan", "pence", "lira", "naira", "hryvnia"})
SIGN = r"(?:(?:US|CA|C|AU|A|NZ|HK|R)?\$|[€£¥₹₩₽₿₺₪₫฿₦₴₱¢])"
CODE = r"(?:USD|EUR|GBP|JPY|CHF|INR|CAD|AUD|CNY)"
SCALES = {
    "k": "thousand", "K": "thousand", "m": "million", "M": "million", "mn": "million", "MM": "million", "b": "billion", "B": "billion",
    "bn": "billion", "t": "trillion", "T": "trillion", "tn": "trillion",
}  # fmt: skip
SCALE = r"(?: ?(hundred|thousand|million|billion|trillion|[kKmMbBT]|mn|bn|tn|MM)(?![^\W_]))?"
# name -> (one, several); those of TIGHT are words or initials when they stand alone.
UNITS = {
    "mm": "millimeter", "cm": "centimeter", "m": "meter", "km": "kilometer", "nm": "nanometer", "μm": "micrometer", "um": "micrometer",
    "in": "inch inches", "ft": "foot feet", "yd": "yard", "mi": "mile", "mg": "milligram", "g": "gram", "kg": "kilogram",
    "μg": "microgram", "mcg": "microgram", "t": "ton", "oz": "ounce", "lb": "pound", "lbs": "pound", "ml": "milliliter",
    "mL": "milliliter", "cl": "centiliter", "dl": "deciliter", "l": "liter", "L": "liter", "gal": "gallon", "qt": "quart", "pt": "point",
    "px": "pixel", "tbsp": "tablespoon", "tsp": "teaspoon", "bit": "bit", "kb": "kilobyte", "kB": "kilobyte", "KB": "kilobyte",
    "MB": "megabyte", "GB": "gigabyte", "TB": "terabyte", "PB": "petabyte", "KiB": "kibibyte", "MiB": "mebibyte", "GiB": "gibibyte",
    "Kb": "kilobit", "Mb": "megabit", "Gb": "gigabit", "kbps": "kilobit|per second", "Mbps": "megabit|per second",
    "Gbps": "gigabit|per second", "MB/s": "megabyte|per second", "GB/s": "gigabyte|per second", "Hz": "hertz hertz",
    "kHz": "kilohertz kilohertz", "MHz": "megahertz megahertz", "GHz": "gigahertz gigahertz", "V": "volt", "mV": "millivolt",
    "kV": "kilovolt", "W": "watt", "kW": "kilowatt", "MW": "megawatt", "GW": "gigawatt", "kWh": "kilowatt-hour", "mA": "milliamp",
    "mAh": "milliamp-hour", "Wh": "watt-hour", "Ω": "ohm", "kΩ": "kilohm", "ns": "nanosecond", "μs": "microsecond", "ms": "millisecond",
    "s": "second", "sec": "second", "secs": "second", "min": "minute", "mins": "minute", "h": "hour", "hr": "hour", "hrs": "hour",
    "yr": "year", "yrs": "year", "wk": "week", "wks": "week", "mo": "month", "mos": "month", "J": "joule", "kJ": "kilojoule",
    "cal": "calorie", "kcal": "kilocalorie", "N": "newton", "Pa": "pascal", "hPa": "hectopascal", "kPa": "kilopascal", "bar": "bar",
    "psi": "psi psi", "dB": "decibel", "rpm": "rpm rpm", "dpi": "dpi dpi", "fps": "fps fps", "mph": "mile|per hour",
    "kph": "kilometer|per hour", "kmh": "kilometer|per hour", "km/h": "kilometer|per hour", "kt": "knot", "ha": "hectare",
    "sqft": "square-foot square-feet", "sqm": "square-meter", "°": "degree", "°C": "degree|Celsius", "°F": "degree|Fahrenheit",
    "° C": "degree|Celsius", "° F": "degree|Fahrenheit",
}  # fmt: skip
TIGHT = frozenset(("in", "t", "N", "J", "pt", "bit", "bar", "cal", "mo"))
DOTTED = r"(?:in|ft|yd|mi|oz|lbs?|gal|qt|tbsp|tsp|secs?|mins?|hrs?|yrs?|wks?|mos?)\."
NAMES = "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
POWERS = {"2": "square", "3": "cubic"}
