module timing-server

go 1.22
