module steady

go 1.26.0
