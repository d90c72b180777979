"""The rule language: what a rule may say, what is wrong with one, which ones match. Pure but for
`files`, which reads them."""
