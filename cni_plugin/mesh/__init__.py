"""Pure: pod facts and a dialect in, a Decision out."""
