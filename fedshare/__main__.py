from fedshare.main import main

main()
