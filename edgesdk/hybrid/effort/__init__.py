"""After a draft that the device is not sure of: may it be worth a few more tries?"""
