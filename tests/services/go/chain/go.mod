module throughline.test/chain

go 1.18
