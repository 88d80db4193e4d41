from monochord.cli import main

main()
