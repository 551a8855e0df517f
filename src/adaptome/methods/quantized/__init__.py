"""Methods that know how their base is quantised, or quantise it while they train."""
